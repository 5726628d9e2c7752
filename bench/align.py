"""Alignment on a full-size SD1.5: its time in plain steps of the sampler, and its peak memory over that of one.

Run as a program it does one of both and prints the most memory the process held, weights included.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), *(str(HERE.parent / each) for each in ("tools", "dev", "demo/runs", "tests/support"))]
PIXELS = 512


def rows(repeats: int) -> dict[str, dict[str, Any]]:
    """Two rows, at 512 x 512 with a reference of the same size."""
    from timing import alternate

    plain_run, align = prepared()
    times = alternate(lambda: plain_run(lambda plain: plain()), align, repeats)
    bytes_of = {which: peak_of(which) for which in ("step", "align")}
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
    mask = torch.zeros(PIXELS, PIXELS)
    mask[PIXELS // 4 : PIXELS // 2, PIXELS // 4 : PIXELS // 2] = 1

    @torch.inference_mode()
    def align() -> Any:
        prompt_of_both = prompt("sd15", 2)
        return attention_maps(
            model, prompt_of_both, picture, reference, look, lambda grid: group_of_mask(mask, grid), "bench"
        )

    return sampler_step(model, "sd15", PIXELS), align


def peak_of(which: str) -> int:
    """The most memory a process of its own holds while it does one of both."""
    result = subprocess.run([sys.executable, __file__, which], capture_output=True, text=True, check=True)
    return int(json.loads(result.stdout.splitlines()[-1]))


def main(which: str) -> None:
    """`which` is "step" or "align"."""
    import bootstrap

    bootstrap.name_packages()
    bootstrap.prepare_host()
    import torch
    from memory import forget_peak, peak_bytes

    torch.set_num_threads(2)
    plain_run, align = prepared()
    forget_peak()
    if which == "step":
        plain_run(lambda plain: plain())
    else:
        align()
    print(json.dumps(peak_bytes()))


if __name__ == "__main__":
    main(sys.argv[1])
