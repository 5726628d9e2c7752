"""Alignment on a full-size SD1.5 and on blocks as wide as Flux's: its time and its memory beside those of plain steps.

Run as a program it does one of them and prints the most memory the process held, weights included, and the seconds that
its processor cores took.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), *(str(HERE.parent / each) for each in ("tools", "dev", "demo/runs", "tests/support"))]
PIXELS = 512
FLUX_PIXELS = 1024
TEXT = 512  # tokens of Flux's prompt
STEP, EDIT, IN_CONTEXT, SELF = "flux step", "flux edit", "flux in-context", "flux self-attention"


def rows(repeats: int) -> dict[str, dict[str, Any]]:
    """Two rows, at 512 x 512 with a reference of the same size."""
    from timing import alternate

    plain_run, align = prepared()
    times = alternate(lambda: plain_run(lambda plain: plain()), align, repeats)
    bytes_of = {which: measured(which)["bytes"] for which in ("step", "align")}
    about = {"a": "plain CFG step", "b": "alignment at one timestep, the node's layers"}
    return {
        "align.time_vs_step": {
            "value": round(times.ratio, 4),
            "unit": "plain CFG steps",
            "bound": 2.0,
            "detail": {**about, **times.detail(), "repeats": repeats},
        },
        "align.memory_vs_step": {
            "value": round(bytes_of["align"] / bytes_of["step"], 4),
            "unit": "times the peak of a plain CFG step, weights included",
            "bound": 1.15,
            "detail": {**about, **{f"{which}_bytes": peak for which, peak in bytes_of.items()}},
        },
    }


def flux_rows() -> dict[str, dict[str, Any]]:
    """Rows of both back ends without training, at 1024 x 1024, with a reference of the same size, on two Flux blocks.

    Both blocks are read; in the whole model it is six of 57, so the share of the reading is larger here. Each is run
    once, in a process of its own, and its cores' time is taken, which does not depend on what else the machine does.
    """
    found = {which: measured(which) for which in (STEP, EDIT, IN_CONTEXT, SELF)}
    step = found[STEP]
    about = {"a": "step with the reference in view, as in an edit", "b": "alignment at one timestep, both blocks read"}
    about["c"] = "step without a reference"
    detail = {**about, **{f"{which}_{name}": each for which, both in found.items() for name, each in both.items()}}
    seconds = {
        "align.flux.time": (IN_CONTEXT, found[EDIT]["seconds"], "a step with the reference in view"),
        "align.flux.self.time": (SELF, step["seconds"], "a pass of the reference"),
    }
    peaks = {
        "align.flux.memory": (IN_CONTEXT, found[EDIT]["bytes"], "a step with the reference in view"),
        "align.flux.memory_vs_plain": (IN_CONTEXT, step["bytes"], "a step without the reference"),
        "align.flux.self.memory": (SELF, step["bytes"], "a step without the reference"),
    }
    return {
        name: {
            "value": round((found[which]["seconds"] - other) / step["seconds"], 4),
            "unit": f"plain steps more than {than}, time of the cores",
            "bound": 1.0,
            "detail": detail,
        }
        for name, (which, other, than) in seconds.items()
    } | {
        name: {
            "value": round(found[which]["bytes"] / other, 4),
            "unit": f"times the peak of {than}, weights included",
            "bound": 1.15,
            "detail": detail,
        }
        for name, (which, other, than) in peaks.items()
    }


def flux_prepared(which: str) -> Callable[[], Any]:
    """A plain step of blocks as wide as Flux's, one with a reference in view, or an alignment to it."""
    import torch
    from models import FLUX, drawn, evaluation, network
    from refattention.core.patches.families.table import picture_attentions
    from refattention.core.refine_by_align.in_context import in_context_maps, with_references
    from refattention.core.refine_by_align.kernel import group_of_mask
    from refattention.core.refine_by_align.observe import Look, attention_maps, layers_of

    device = torch.device("cpu")
    sizes = {**FLUX, "depth": 1, "depth_single_blocks": 1}
    model = drawn(network("Flux", sizes, torch.float32, device), device)
    generator = torch.Generator().manual_seed(4)
    picture, reference = torch.randn(2, 1, 16, FLUX_PIXELS // 8, FLUX_PIXELS // 8, generator=generator)
    text = torch.randn(1, TEXT, FLUX["context_in_dim"], generator=generator)
    positive = [[text, {"pooled_output": torch.randn(1, FLUX["vec_in_dim"], generator=generator)}]]
    if which in (STEP, EDIT):
        seen = positive if which == STEP else with_references(positive, [reference])
        step = evaluation(model, picture, seen, seen, cfg=1.0, level=0.261)
        return lambda: step(lambda evaluate: evaluate())
    look = Look(frozenset(layers_of(picture_attentions(model, "bench"))), (261,))
    mask = masked(FLUX_PIXELS)

    def groups(grid: tuple[int, int]) -> Any:
        return group_of_mask(mask, grid)

    @torch.inference_mode()
    def align() -> Any:
        if which == SELF:
            return attention_maps(model, positive, picture, reference, look, groups, "bench")
        return in_context_maps(model, positive, picture, [reference], look, groups, "bench")

    return align


def masked(pixels: int) -> Any:
    """A mask over a sixteenth of a square picture."""
    import torch

    mask = torch.zeros(pixels, pixels)
    mask[pixels // 4 : pixels // 2, pixels // 4 : pixels // 2] = 1
    return mask


def prepared() -> tuple[Callable[[Callable[..., Any]], Any], Callable[[], Any]]:
    """A run of plain steps, and an alignment."""
    import torch
    from models import prompt, random_model, sampler_step
    from refattention.core.patches.blocks import select_layers
    from refattention.core.patches.unet import self_attention_layers
    from refattention.core.refine_by_align.kernel import group_of_mask
    from refattention.core.refine_by_align.observe import Look, attention_maps

    model = random_model("sd15", torch.float32)
    look = Look(select_layers("", list(self_attention_layers(model.model.diffusion_model)), "sd15"), (261,))
    picture, reference = torch.randn(2, 1, 4, PIXELS // 8, PIXELS // 8, generator=torch.Generator().manual_seed(4))
    mask = masked(PIXELS)

    @torch.inference_mode()
    def align() -> Any:
        prompt_of_both = prompt("sd15", 2)
        return attention_maps(
            model, prompt_of_both, picture, reference, look, lambda grid: group_of_mask(mask, grid), "bench"
        )

    return sampler_step(model, "sd15", PIXELS), align


def measured(which: str) -> dict[str, float]:
    """The most memory that a process of its own holds while it does one of them, and the time of its cores."""
    result = subprocess.run([sys.executable, __file__, which], capture_output=True, text=True, check=True)
    return dict(json.loads(result.stdout.splitlines()[-1]))


def main(which: str) -> None:
    """`which` is "step" or "align" of SD1.5, or one of the four of Flux."""
    import bootstrap

    bootstrap.name_packages()
    bootstrap.prepare_host()
    import torch
    from memory import forget_peak, peak_bytes

    torch.set_num_threads(2)
    if which.startswith("flux"):
        run = flux_prepared(which)
    else:
        plain_run, align = prepared()
        run = {"step": lambda: plain_run(lambda plain: plain()), "align": align}[which]
    forget_peak()
    start = time.process_time()
    run()
    print(json.dumps({"bytes": peak_bytes(), "seconds": round(time.process_time() - start, 3)}))


if __name__ == "__main__":
    main(sys.argv[1])
