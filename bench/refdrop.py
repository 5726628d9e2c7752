"""RefDrop with a latent reference: a step's time over that of a plain step, next to the ratio of their operations.

Rows `latent` pass the reference at each step, rows `cached` take it from the cache that an earlier picture filled, rows
`batch4` pass it once for four pictures.
"""

from __future__ import annotations

from typing import Any

import torch
from models import random_model
from refattention.core.blocks import ALL, CHOICES, select
from refattention.core.patches.refdrop import Guide, Reference, ReferenceCache, add_guide
from refattention.core.patches.unet import self_attention_blocks
from steps import step_row


def rows(family: str, sizes: list[int], dtype: torch.dtype, repeats: int) -> dict[str, dict[str, Any]]:
    """One row per picture size; the reference has the size of the picture."""
    model = random_model(family, dtype)
    return {f"refdrop.latent.{family}.{pixels}": _row(model, family, pixels, repeats) for pixels in sizes}


def cached_rows(family: str, sizes: list[int], dtype: torch.dtype, repeats: int) -> dict[str, dict[str, Any]]:
    """One row per picture size, all blocks guided, and one of four pictures at the first size."""
    model = random_model(family, dtype)
    rows = {
        f"refdrop.cached.{family}.{pixels}": _row(model, family, pixels, repeats, ReferenceCache(2**33), choice=ALL)
        for pixels in sizes
    }
    return {**rows, f"refdrop.batch4.{family}.{sizes[0]}": _row(model, family, sizes[0], repeats, batch=4)}


def _row(
    model: Any,
    family: str,
    pixels: int,
    repeats: int,
    cache: ReferenceCache | None = None,
    choice: str = CHOICES[0],  # the node's default: all blocks but the first after the middle
    batch: int = 1,
) -> dict[str, Any]:
    samples = torch.randn(1, 4, pixels // 8, pixels // 8, generator=torch.Generator().manual_seed(4))
    blocks = select(choice, "", list(self_attention_blocks(model.model.diffusion_model)), family)
    patched = add_guide(model, Guide(0.3, blocks, Reference(samples, None, 0), cache=cache))
    row = step_row(model, patched, family, pixels, repeats, "one reference", batch)
    if cache is not None:
        row["detail"]["cache_MiB"] = cache.size / 2**20
    return row
