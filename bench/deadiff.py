"""DEADiff: a step with a style over a plain step, and the time from a reference picture to tokens."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from models import random_model, sampler_step
from refattention.core.deadiff.loaded import load
from refattention.core.deadiff.settings import DEADiffSettings, cross_attention_widths
from refattention.core.deadiff.wrappers import apply_deadiff
from refattention_demo.deadiff_layout import FULL_SIZE, random_weights
from timing import alternate

# The official code's own ratio is 1.019.
BOUND = 1.02


def rows(sizes: list[int], dtype: torch.dtype, repeats: int) -> dict[str, dict[str, Any]]:
    """One row per picture size, and one for the tokens; full-size SD1.5 and DEADiff with random weights."""
    model = random_model("sd15", dtype)
    generator = torch.Generator().manual_seed(5)
    widths = cross_attention_widths(model.model.diffusion_model)
    image = {
        layer: (torch.randn(1, 16, width, generator=generator), torch.randn(1, 16, width, generator=generator))
        for layer, width in widths.items()
    }
    patched = apply_deadiff(model, DEADiffSettings(image))
    steps = {f"deadiff.step.{pixels}": _step(model, patched, pixels, repeats) for pixels in sizes}
    return {**steps, "deadiff.tokens": _tokens(repeats)}


def _step(model: Any, patched: Any, pixels: int, repeats: int) -> dict[str, Any]:
    plain_run, style_run = (sampler_step(each, "sd15", pixels) for each in (model, patched))

    def measure(plain: Callable[[], Any], style: Callable[[], Any]) -> dict[str, Any]:
        times = alternate(plain, style, repeats)
        return {
            "value": round(times.ratio, 4),
            "unit": "times a plain CFG step",
            "bound": BOUND,
            "detail": {
                "a": "plain CFG step",
                "b": "the same step with 16 style tokens, from the second step of a run on",
                **times.detail(),
                "repeats": repeats,
            },
        }

    return plain_run(lambda plain: style_run(lambda style: measure(plain, style)))


def _tokens(repeats: int) -> dict[str, Any]:
    deadiff = load(random_weights(FULL_SIZE))
    picture = torch.rand(1, 512, 512, 3, generator=torch.Generator().manual_seed(6))
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        deadiff.tokens("style", picture, "squash", "average")
        seconds.append(time.perf_counter() - start)
    detail = {"what": "one picture to 16 tokens, once in a run", "first": round(seconds[0], 3), "repeats": repeats}
    # No more than a plain step at 512 takes on two cores.
    return {"value": round(statistics.median(seconds[1:]), 3), "unit": "s", "bound": 7.3, "detail": detail}
