"""Which timestep and layer of a model align best: Figure 5 of Refine-by-Align (arXiv 2412.00306) on a set of your own.

The set is a folder with one folder per case, which holds image.png, mask.png, reference.png and reference_mask.png
(white = the artifact, and the place that matches it). Run with ComfyUI's Python environment:

    python tools/calibrate_align.py SET CHECKPOINT [--adapter FILE --clip-vision FILE] --output calibration

writes calibration.json, whose entries are inputs of Refine by Align and Refine Align, and calibration.png, the plot.
With a trained adapter also calibration.safetensors: the adapter that carries them, for the nodes to follow (auto).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from batch.files import new_file
from pack import import_pack, run_extension
from tqdm import tqdm

TIMESTEPS = range(21, 1000, 80)
ENDINGS = (".json", ".png", ".safetensors")
NAMES = ("image", "mask", "reference", "reference_mask")
NAME = "calibrate_align"  # in messages

Scores = dict[tuple[int, str], list[float]]  # IoU of each case by timestep and layer


def score(
    cases: Iterable[Path],
    model: Any,
    vae: Any,
    positive: list[Any],
    timesteps: Iterable[int],
    size: int,
    adapter: Any = None,
    clip_vision: Any = None,
    in_context: bool = False,
) -> Scores:
    """IoU of found and true place for every case, timestep and layer.

    Args:
        adapter, clip_vision: of the trained back end; without them the untrained one is scored.
    """
    import torch
    from refattention.core.patches.blocks import layer_name
    from refattention.core.patches.families.table import picture_attentions
    from refattention.core.refine_by_align.back_ends import AUTO, IN_CONTEXT, SELF, Scene, back_end
    from refattention.core.refine_by_align.match import Finding, find
    from refattention.core.refine_by_align.observe import Look, cell_and_unit, layers_of
    from refattention.core.refine_by_align.window import Work, artifacts, latent_mask, scaled

    cell, unit = cell_and_unit(model)
    layers = frozenset(layers_of(picture_attentions(model, NAME)))
    untrained = IN_CONTEXT if in_context else SELF
    choice = untrained if adapter is None else AUTO
    shown = back_end(model, vae.encode, positive, NAME, adapter, clip_vision, choice)
    scores: Scores = {}
    for case in tqdm(cases, unit="case", disable=None):
        image, mask, reference, truth = (picture(case, name) for name in NAMES)
        (area,) = artifacts((mask[0, ..., 0] > 0.5).float(), Work(feather=0), is_together=True)
        work = scaled(area.window.cut(image), size, unit)
        scene = Scene(work, area.window.cut(area.region.unsqueeze(0))[0], latent_mask(area, work, cell))
        with torch.inference_mode():
            maps = shown.maps(scene, [scaled(reference, size, unit)], None, Look(layers, tuple(timesteps)))
        for (timestep, layer), seen in maps.items():
            region = find(seen[0], (truth.shape[1], truth.shape[2]), Finding()).region > 0
            wanted = truth[0, ..., 0] > 0.5
            iou = ((region & wanted).sum() / (region | wanted).sum()).item()
            scores.setdefault((timestep, layer_name(layer)), []).append(iou)
    return scores


def faults_of(case: Path) -> list[str]:
    """What is wrong with a case: the last one would end the hours of work for all."""
    try:
        image, mask, _, truth = (picture(case, name) for name in NAMES)
    except (OSError, ValueError) as error:
        return [f"{case}: {error}"]
    masks = {"mask": mask, "reference_mask": truth}
    wrong = [f"{case / name}.png has nothing white" for name, each in masks.items() if not (each[..., 0] > 0.5).any()]
    if mask.shape != image.shape:
        wrong.append(f"{case / 'mask'}.png has another size than image.png")
    return wrong


def picture(case: Path, name: str) -> Any:
    """(1, H, W, 3) of one file of a case."""
    import numpy
    import torch
    from PIL import Image, ImageOps

    with Image.open(case / f"{name}.png") as file:
        upright = ImageOps.exif_transpose(file).convert("RGB")
        return torch.from_numpy(numpy.asarray(upright) / numpy.float32(255)).unsqueeze(0)


def means(scores: Scores, part: int) -> dict[Any, float]:
    """mIoU by timestep (part 0) or by layer (part 1), over the other and all cases."""
    groups: dict[Any, list[float]] = {}
    for key, values in scores.items():
        groups.setdefault(key[part], []).extend(values)
    return {key: sum(values) / len(values) for key, values in groups.items()}


def best(scores: Scores, most_layers: int = 4) -> dict[str, str]:
    """Inputs of the nodes: the best timestep, and the best layers at it."""
    by_timestep = means(scores, 0)
    timestep = max(by_timestep, key=lambda key: by_timestep[key])
    at_it = means({key: values for key, values in scores.items() if key[0] == timestep}, 1)
    layers = sorted(at_it, key=lambda key: -at_it[key])[:most_layers]
    return {"timesteps": str(timestep), "layers": ", ".join(layers)}


def plot(scores: Scores, target: Any) -> None:
    """Both curves side by side, as bars."""
    from PIL import Image, ImageDraw

    height, bar, gap = 240, 26, 60
    charts = [means(scores, part) for part in (0, 1)]
    sheet = Image.new("RGB", (sum(gap + bar * len(chart) for chart in charts) + gap, height + 130), "white")
    draw, left = ImageDraw.Draw(sheet), gap
    for title, chart in zip(("timestep", "layer"), charts, strict=True):
        draw.text((left, 8), f"mIoU by {title}; the line is 1", fill="black")
        draw.line((left, 40, left + bar * len(chart), 40), fill="black")
        for column, (name, value) in enumerate(chart.items()):
            x, top = left + column * bar, 40 + round(height * (1 - value))
            draw.rectangle((x, top, x + bar - 6, 40 + height), fill="#0072B2")
            label = Image.new("L", (80, 12), 0)
            ImageDraw.Draw(label).text((0, 0), f"{name}", fill=255)
            sheet.paste("black", (x + 4, 44 + height), label.rotate(-90, expand=True))
        left += bar * len(chart) + gap
    sheet.save(target, "PNG")


def save(chosen: dict[str, str], scores: Scores, numbers: Path, picture: Path) -> None:
    """Writes both files.

    Raises: FileExistsError rather than writing over one.
    """
    with new_file(numbers) as file:
        file.write((json.dumps(chosen, indent=1) + "\n").encode())
    with new_file(picture) as file:
        plot(scores, file)


def save_calibrated(adapter: Any, chosen: dict[str, str], target: Path) -> None:
    """Writes an adapter that carries what was found.

    Raises: FileExistsError rather than writing over one.
    """
    from refattention.core.refine_by_align.files import save_adapter

    save_adapter(replace(adapter, origin=replace(adapter.origin, look=chosen)), target)


def arguments_of() -> argparse.Namespace:
    """The command line with its `cases` and `targets`, checked before the hours of work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path, help="folder of cases")
    parser.add_argument("checkpoint", type=Path, help="checkpoint of a model of pictures, with text encoder and VAE")
    parser.add_argument("--prompt", default="", help="one that fits all cases")
    parser.add_argument(
        "--size", type=int, help="working size; otherwise as the nodes', that of the adapter's or the model's training"
    )
    parser.add_argument("--in-context", action="store_true", help="an editing model, which sees references beside it")
    parser.add_argument("--adapter", type=Path, help="a trained adapter, as Refine Align Load reads it")
    parser.add_argument("--clip-vision", type=Path, help="the vision encoder that it was trained with")
    parser.add_argument(
        "--extension", type=Path, help="a Python file that makes the model known to ComfyUI, as models.extensions do"
    )
    parser.add_argument("--cpu", action="store_true", help="do not use the GPU")
    parser.add_argument("--output", type=Path, default=Path("calibration"), help="the files, without an ending")
    arguments = parser.parse_args()
    if (arguments.adapter is None) != (arguments.clip_vision is None):
        parser.error("--adapter and --clip-vision belong together; give both, or neither")
    if arguments.adapter and arguments.in_context:
        parser.error("--in-context is a way without training, but --adapter names a trained one; give one of them")
    # Only an ending is added, for calib.sd15 and calib.sdxl are two names.
    endings = ENDINGS[: 3 if arguments.adapter else 2]
    arguments.targets = [arguments.output.with_name(f"{arguments.output.name}{ending}") for ending in endings]
    for target in arguments.targets:
        if os.path.lexists(target):
            parser.error(f"{target} exists already; choose another --output")
        if not target.parent.is_dir():
            parser.error(f"there is no folder {target.parent}")
    folders = arguments.set.iterdir() if arguments.set.is_dir() else ()
    arguments.cases = sorted(path for path in folders if path.is_dir() and not path.name.startswith("."))
    if not arguments.cases:
        parser.error(f"{arguments.set} holds no folders; each case is one, with {', '.join(NAMES)} as png")
    if wrong := [fault for case in arguments.cases for fault in faults_of(case)]:
        parser.error("; ".join(wrong))
    return arguments


def load_models(arguments: argparse.Namespace) -> tuple[Any, Any, list[Any], Any, Any]:
    """Model, VAE, prompt, adapter and vision encoder.

    Raises: RuntimeError when a file is not what it should be.
    """
    if arguments.extension and not run_extension(arguments.extension):
        raise RuntimeError(f"--extension names {arguments.extension}, which is no Python file.")
    import comfy.clip_vision
    import comfy.sd
    from refattention.core.refine_by_align.files import load_adapter

    adapter = vision = None
    if arguments.adapter:
        adapter, vision = load_adapter(arguments.adapter), comfy.clip_vision.load(str(arguments.clip_vision))
        if vision is None:
            raise RuntimeError(f"{arguments.clip_vision} is no vision encoder that ComfyUI knows.")
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(arguments.checkpoint))
    if model is None or clip is None or vae.first_stage_model is None:
        raise RuntimeError(f"{arguments.checkpoint} lacks model, text encoder or VAE. Use a checkpoint with all three.")
    return model, vae, clip.encode_from_tokens_scheduled(clip.tokenize(arguments.prompt)), adapter, vision


def calibrate(arguments: argparse.Namespace) -> None:
    """Scores the set and writes the files."""
    from refattention.core.refine_by_align.adapter import size_in_training

    model, vae, positive, adapter, vision = load_models(arguments)
    size = arguments.size or size_in_training(model, adapter)
    given = arguments.cases, model, vae, positive, TIMESTEPS, size, adapter, vision
    scores = score(*given, in_context=arguments.in_context)
    for part, title in enumerate(("timestep", "layer")):
        for key, value in means(scores, part).items():
            print(f"{title} {key!s:14} mIoU {value:.3f}")
    chosen = best(scores)
    print(f"best: {chosen}")
    save(chosen, scores, *arguments.targets[:2])
    if adapter:
        save_calibrated(adapter, chosen, arguments.targets[2])


def main() -> int:
    """0 when the files were written."""
    arguments = arguments_of()
    import_pack(cpu=arguments.cpu)
    try:
        calibrate(arguments)
    except (RuntimeError, ValueError, OSError) as error:
        sys.exit(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
