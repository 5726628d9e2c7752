"""Scores pictures that were made: try-on, style, subject, alignment. A table on the terminal, and JSON.

    python tools/evaluate.py tryon LIST.jsonl [--lpips alexnet.pth] [--clip FOLDER] [--output scores.json]
    python tools/evaluate.py style|subject LIST.jsonl --clip FOLDER [--dino FOLDER]
    python tools/evaluate.py alignment LIST.jsonl
    python tools/evaluate.py tryon --results FOLDER --columns truth=LoadImage.image

LIST.jsonl has a line for each picture, its files named from the list's folder: "result"; for tryon "truth"; for style
"reference" and "prompt"; for subject "reference" (one or a list), "prompt", and "group", by which seeds of one prompt
belong together; for alignment "result" and "truth" are masks. With --results, the lines are those of a folder that
run_workflow.py wrote, and --columns tells which of its inputs is which.

Nothing is downloaded. --clip and --dino are folders of Hugging Face models (config and safetensors), --lpips the file
of torchvision's AlexNet weights. Without them, the scores that need them are left out, and a line says so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from batch.files import new_file

Line = dict[str, Any]
Scores = dict[str, list[float]]
NEEDED = {
    "tryon": ("result", "truth"),
    "style": ("result", "reference", "prompt"),
    "subject": ("result", "reference", "prompt"),
    "alignment": ("result", "truth"),
}
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
DONE, USAGE = 0, 2


class EvaluationError(ValueError):
    """One sentence on why there are no scores."""


def read_list(path: Path) -> list[Line]:
    """Lines of a JSONL file, with the files' paths from its folder."""
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if text.strip():
            try:
                line = json.loads(text)
            except ValueError as error:
                raise EvaluationError(f"{path}, line {number} is no JSON: {error}.") from error
            lines.append(_placed(line, path.parent))
    return lines


def read_results(folder: Path, columns: Sequence[str], files: Path) -> list[Line]:
    """The first picture of each row that run_workflow.py has done, with the row's inputs under other names.

    Args:
        columns: NAME=NODE.INPUT each.
        files: folder that the rows' files are named from, that of their table.
    """
    names = dict(column.split("=", 1) for column in columns)
    lines = []
    for text in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[1:]:
        record = json.loads(text)
        if record.get("state") != "done":
            continue
        place = folder / record["folder"]
        pictures = sorted(path for path in place.rglob("*") if path.suffix.lower() in PICTURES)
        if not pictures:
            raise EvaluationError(f"{place} holds no picture.")
        given = record.get("inputs", {})
        missing = [column for column in names.values() if column not in given]
        if missing:
            raise EvaluationError(
                f"The row {record['folder']} was run without {missing[0]}. It has {', '.join(given)}."
            )
        values = {name: given[column] for name, column in names.items()}
        lines.append({**_placed(values, files), "result": pictures[0]})
    return lines


def _placed(line: Line, folder: Path) -> Line:
    placed = dict(line)
    for name in ("result", "truth", "reference"):
        if name in line:
            value = line[name]
            placed[name] = [folder / each for each in value] if isinstance(value, list) else folder / value
    return placed


def require_complete(lines: Sequence[Line], kind: str) -> None:
    """Checks that every line has what the scores of a kind need, and that the files are there.

    Raises:
        EvaluationError: it has not; says of how many, and names the first.
    """
    if not lines:
        raise EvaluationError("There is nothing to score: the list has no lines.")
    wrong = []
    for number, line in enumerate(lines, 1):
        wrong += [f"line {number} has no '{name}'" for name in NEEDED[kind] if name not in line]
        wrong += [f"{path} is missing" for path in _files(line) if not path.is_file()]
    if wrong:
        raise EvaluationError(f"{len(wrong)} entries of the list cannot be scored: {'; '.join(wrong[:10])}.")


def _files(line: Line) -> Iterator[Path]:
    for name in ("result", "truth", "reference"):
        value = line.get(name, [])
        yield from value if isinstance(value, list) else [value]


def load(path: Path, size: tuple[int, int] | None = None) -> Any:
    """(1, 3, H, W) in [0, 1]; scaled to a size (H, W), if one is given."""
    import torch
    from PIL import Image
    from torchvision.transforms.v2 import functional as v2

    with Image.open(path) as file:
        image = file.convert("RGB")
    if size is not None and (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return v2.to_dtype(v2.pil_to_tensor(image), torch.float32, scale=True)[None]


def try_on(lines: Sequence[Line], networks: Networks) -> Scores:
    """SSIM, PSNR and, with their networks, LPIPS, and FID and KID over the features of the named CLIP."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    scores: Scores = {"SSIM": [], "PSNR": [], **({"LPIPS": []} if networks.lpips else {})}
    for line in lines:
        truth = load(line["truth"])
        result = load(line["result"], (truth.shape[2], truth.shape[3]))
        scores["SSIM"].append(similarity(result, truth))
        scores["PSNR"].append(float(peak_signal_noise_ratio(result, truth, data_range=1.0)))
        if networks.lpips:
            scores["LPIPS"].append(float(networks.lpips(result * 2 - 1, truth * 2 - 1)))
    if networks.clip:
        scores |= _distances(lines, networks.clip)
    return scores


def similarity(result: Any, truth: Any) -> float:
    """SSIM."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    value: Any = structural_similarity_index_measure(result, truth, data_range=1.0)
    return float(value)


def _distances(lines: Sequence[Line], clip: Clip) -> Scores:
    """FID and KID between results and truths; two pictures are the least for either."""
    # Where the package of Inception is missing, which is not needed here, only their own modules offer them.
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    if len(lines) < 2:
        return {}
    features = clip.as_module()
    fid = FrechetInceptionDistance(features, normalize=True)
    kid = KernelInceptionDistance(features, normalize=True, subset_size=min(len(lines), 100))
    for line in lines:
        for metric in (fid, kid):
            metric.update(load(line["truth"]), real=True)
            metric.update(load(line["result"]), real=False)
    return {"FID (CLIP)": [float(fid.compute())], "KID (CLIP)": [float(kid.compute()[0])]}


def style(lines: Sequence[Line], networks: Networks) -> Scores:
    """CLIP-T, and the similarity of the picture to the reference whose style it should have."""
    clip = networks.require_clip()
    scores: Scores = {"CLIP-T": [], "style similarity": []}
    for line in lines:
        picture = clip.picture(line["result"])
        scores["CLIP-T"].append(cosine(picture, clip.text(line["prompt"])))
        scores["style similarity"].append(cosine(picture, clip.picture(line["reference"])))
    return scores


def subject(lines: Sequence[Line], networks: Networks) -> Scores:
    """CLIP-I, CLIP-T and DINO, and the variances of the first and the last over the pictures of a group."""
    clip = networks.require_clip()
    found: dict[str, dict[str, list[float]]] = {}
    scores: Scores = {"CLIP-I": [], "CLIP-T": [], **({"DINO": []} if networks.dino else {})}
    for line in lines:
        group = found.setdefault(str(line.get("group", line["prompt"])), {})
        likeness: dict[str, Callable[[Path], Any]] = {
            "CLIP-I": clip.picture,
            **({"DINO": networks.dino} if networks.dino else {}),
        }
        for name, encode in likeness.items():
            value = mean_likeness(encode, line)
            scores[name].append(value)
            group.setdefault(name, []).append(value)
        scores["CLIP-T"].append(cosine(clip.picture(line["result"]), clip.text(line["prompt"])))
    for name, short in (("CLIP-I", "CLIP-Iv"), ("DINO", "DINO-v")):
        variances = [variance(group[name]) for group in found.values() if len(group.get(name, [])) > 1]
        if variances:
            scores[short] = variances
    return scores


def mean_likeness(encode: Callable[[Path], Any], line: Line) -> float:
    """Mean of the cosines to all references, as the paper of P3S takes it."""
    references = line["reference"] if isinstance(line["reference"], list) else [line["reference"]]
    picture = encode(line["result"])
    return sum(cosine(picture, encode(reference)) for reference in references) / len(references)


def alignment(lines: Sequence[Line], networks: Networks) -> Scores:
    """Intersection over union of found and true masks."""
    from torchmetrics.functional.classification import binary_jaccard_index

    values = []
    for line in lines:
        truth = load(line["truth"])
        result = load(line["result"], (truth.shape[2], truth.shape[3]))
        values.append(float(binary_jaccard_index((result[0, 0] >= 0.5).int(), (truth[0, 0] >= 0.5).int())))
    return {"mIoU": values}


def cosine(one: Any, other: Any) -> float:
    """Of two vectors."""
    return float((one @ other) / (one.norm() * other.norm()))


def variance(values: Sequence[float]) -> float:
    """Unbiased."""
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


class Clip:
    """A CLIP of Hugging Face's transformers, from a folder."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoProcessor, CLIPModel

        self._model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        self._processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        self._known: dict[object, Any] = {}

    def picture(self, path: Path) -> Any:
        """The projected vector of a picture."""
        return self._get(path, lambda: self.pixels(load(path)))

    def text(self, text: str) -> Any:
        """The projected vector of a text."""
        import torch

        def encode() -> Any:
            tokens = self._processor(text=[text], return_tensors="pt", padding=True, truncation=True)
            with torch.no_grad():
                return _vector(self._model.get_text_features(**tokens))

        return self._get(text, encode)

    def pixels(self, picture: Any) -> Any:
        """The projected vector of pixels (1, 3, H, W) in [0, 1]."""
        import torch

        inputs = self._processor(images=[picture[0]], return_tensors="pt", do_rescale=False)
        with torch.no_grad():
            return _vector(self._model.get_image_features(**inputs))

    def as_module(self) -> Any:
        """What torchmetrics takes for features: pictures (B, 3, H, W) to (B, C)."""
        import torch

        clip = self

        class Features(torch.nn.Module):
            num_features = clip._model.config.projection_dim

            def forward(self, pictures: Any) -> Any:
                pictures = pictures if pictures.is_floating_point() else pictures.float() / 255
                return torch.stack([clip.pixels(picture[None]) for picture in pictures])

        return Features()

    def _get(self, key: object, make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


class Dino:
    """A vision encoder of transformers whose class token tells pictures apart, such as DINOv2."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self._model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)

    def __call__(self, path: Path) -> Any:
        """The vector of a picture."""
        import torch

        inputs = self._processor(images=[load(path)[0]], return_tensors="pt", do_rescale=False)
        with torch.no_grad():
            return self._model(**inputs).last_hidden_state[0, 0]


def _vector(output: Any) -> Any:
    """Newer versions of transformers hand the vector back inside an output."""
    return getattr(output, "pooler_output", output)[0]


class Networks:
    """What scores need beside the pictures; each may be missing."""

    def __init__(self, clip: Path | None, dino: Path | None, lpips: Path | None) -> None:
        self.clip = Clip(clip) if clip else None
        self.dino = Dino(dino) if dino else None
        self.lpips = _lpips(lpips) if lpips else None

    def require_clip(self) -> Clip:
        """The CLIP.

        Raises:
            EvaluationError: none was named.
        """
        if self.clip is None:
            raise EvaluationError("These scores need a CLIP. Name the folder of one by --clip.")
        return self.clip


def _lpips(path: Path) -> Callable[[Any, Any], Any]:
    """LPIPS over AlexNet; its own small weights come with torchmetrics, those of AlexNet from the file."""
    import torch
    from torchmetrics.functional.image.lpips import _LPIPS

    network = _LPIPS(pretrained=True, net="alex", pnet_rand=True, eval_mode=True)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    # torchmetrics cuts AlexNet's layers into slices, and keeps their numbers.
    own = network.net.state_dict()
    renamed = {name: weights.get(f"features.{name.split('.', 1)[1]}") for name in own}
    if missing := [name for name, weight in renamed.items() if weight is None]:
        raise EvaluationError(f"{path} is not torchvision's AlexNet: it lacks features.{missing[0].split('.', 1)[1]}.")
    network.net.load_state_dict(renamed)
    return lambda one, other: network(one, other).mean()


def report(scores: Scores, count: int) -> dict[str, dict[str, float]]:
    """Mean, deviation and number of each score; prints the table."""
    table = {}
    print(f"{'score':20} {'mean':>10} {'deviation':>10} {'n':>6}    of {count} pictures")
    for name, values in scores.items():
        mean = sum(values) / len(values)
        deviation = variance(values) ** 0.5 if len(values) > 1 else 0.0
        table[name] = {"mean": mean, "deviation": deviation, "n": len(values)}
        print(f"{name:20} {mean:10.4f} {deviation:10.4f} {len(values):6}")
    return table


def arguments_of(command_line: Sequence[str]) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("kind", choices=tuple(NEEDED))
    parser.add_argument("list", type=Path, nargs="?", help="JSONL, a line for each picture")
    parser.add_argument("--results", type=Path, help="a folder that run_workflow.py wrote, instead of a list")
    parser.add_argument("--columns", nargs="+", default=[], metavar="NAME=NODE.INPUT", help="what its inputs are")
    parser.add_argument("--files", type=Path, default=Path(), help="folder of the table that the results were run with")
    parser.add_argument("--clip", type=Path, help="folder of a CLIP")
    parser.add_argument("--dino", type=Path, help="folder of a DINOv2")
    parser.add_argument("--lpips", type=Path, help="torchvision's AlexNet weights")
    parser.add_argument("--output", type=Path, help="JSON file for the scores")
    options = parser.parse_args(command_line)
    if (options.list is None) == (options.results is None):
        parser.error("name either a list or --results")
    return options


def main(command_line: Sequence[str]) -> int:
    """0 when scored, 2 when there is nothing to score."""
    options = arguments_of(command_line)
    try:
        if options.output and os.path.lexists(options.output):
            raise EvaluationError(f"{options.output} exists already; choose another --output.")
        lines = (
            read_list(options.list) if options.list else read_results(options.results, options.columns, options.files)
        )
        require_complete(lines, options.kind)
        networks = Networks(options.clip, options.dino, options.lpips)
        score = {"tryon": try_on, "style": style, "subject": subject, "alignment": alignment}[options.kind]
        table = report(score(lines, networks), len(lines))
    except (EvaluationError, OSError) as error:
        print(error, file=sys.stderr)
        return USAGE
    left_out = {"tryon": {"lpips": "LPIPS", "clip": "FID and KID"}, "subject": {"dino": "DINO"}}.get(options.kind, {})
    for name, what in left_out.items():
        if getattr(options, name) is None:
            print(f"{what} left out: --{name} names no network.")
    if options.output:
        entry = {"kind": options.kind, "pictures": len(lines), "scores": table}
        with new_file(options.output) as file:
            file.write((json.dumps(entry, indent=1) + "\n").encode())
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
