"""RefDrop with a latent reference: a step's time over that of a plain step, next to the ratio of their operations.

Rows `latent` pass the reference at each step, rows `cached` take it from the cache that an earlier picture filled. Row
`batch4` is the time of the reference's pass for each of four pictures, over that for a single one.
"""

from __future__ import annotations

from typing import Any

import torch
from models import random_model, sampler_step
from refattention.core.patches.blocks import ALL, CHOICES, select
from refattention.core.patches.reference_pass import Reference
from refattention.core.patches.unet import self_attention_blocks
from refattention.core.refdrop.cache import ReferenceCache
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from steps import step_row
from timing import alternate


def rows(family: str, sizes: list[int], dtype: torch.dtype, repeats: int) -> dict[str, dict[str, Any]]:
    """One row per picture size; the reference has the size of the picture."""
    model = random_model(family, dtype)

    def row(pixels: int) -> dict[str, Any]:
        return step_row(model, guided(model, family, pixels), family, pixels, repeats, "one reference")

    return {f"refdrop.latent.{family}.{pixels}": row(pixels) for pixels in sizes}


def cached_rows(family: str, sizes: list[int], dtype: torch.dtype, repeats: int) -> dict[str, dict[str, Any]]:
    """One row per picture size, all blocks guided, and one of four pictures at the first size."""
    model = random_model(family, dtype)

    def row(pixels: int) -> dict[str, Any]:
        cache = ReferenceCache(2**33)
        patched = guided(model, family, pixels, cache, ALL)
        row = step_row(model, patched, family, pixels, repeats, "one cached reference")
        row["detail"]["cache_MiB"] = cache.size / 2**20
        return row

    cached = {f"refdrop.cached.{family}.{pixels}": row(pixels) for pixels in sizes}
    return {**cached, f"refdrop.batch4.{family}.{sizes[0]}": _batch_row(model, family, sizes[0], repeats)}


def guided(
    model: Any,
    family: str,
    pixels: int,
    cache: ReferenceCache | None = None,
    choice: str = CHOICES[0],  # the node's default: all blocks but the first after the middle
) -> Any:
    """The model with a latent reference of the picture's size."""
    samples = torch.randn(1, 4, pixels // 8, pixels // 8, generator=torch.Generator().manual_seed(4))
    blocks = select(choice, "", list(self_attention_blocks(model.model.diffusion_model)), family)
    return apply_refdrop(model, RefDropSettings(0.3, blocks, Reference(samples, None, 0), cache=cache))


def _batch_row(model: Any, family: str, pixels: int, repeats: int) -> dict[str, Any]:
    """A pass takes what a step takes longer that makes one than one that finds it cached."""
    detail: dict[str, Any] = {"a": "a step with the reference cached", "b": "a step that passes it", "repeats": repeats}
    seconds = {}
    for batch in (1, 4):
        runs = [
            sampler_step(guided(model, family, pixels, cache), family, pixels, batch)
            for cache in (ReferenceCache(2**33), None)
        ]
        times = runs[0](lambda cached: runs[1](lambda passed: alternate(cached, passed, repeats)))  # noqa: B023
        measured = times.detail()
        seconds[batch] = (measured["b_median"] - measured["a_median"]) / batch
        detail |= {f"{name} of {batch}": value for name, value in measured.items()}
    value = round(seconds[4] / seconds[1], 4)
    return {"value": value, "unit": "times the pass of a single picture", "bound": 0.275, "detail": detail}
