"""RefDrop with a latent reference: a step's time over that of a plain step, next to the ratio of their operations."""

from __future__ import annotations

from typing import Any

import torch
from models import random_model
from refattention.core.blocks import CHOICES, select
from refattention.core.patches.refdrop import Guide, Reference, add_guide
from refattention.core.patches.unet import self_attention_blocks
from steps import step_row


def rows(family: str, sizes: list[int], dtype: torch.dtype, repeats: int) -> dict[str, dict[str, Any]]:
    """One row per picture size; the reference has the size of the picture."""
    model = random_model(family, dtype)
    return {f"refdrop.latent.{family}.{pixels}": _row(model, family, pixels, repeats) for pixels in sizes}


def _row(model: Any, family: str, pixels: int, repeats: int) -> dict[str, Any]:
    samples = torch.randn(1, 4, pixels // 8, pixels // 8, generator=torch.Generator().manual_seed(4))
    # The node's default: all blocks but the first after the middle.
    blocks = select(CHOICES[0], "", list(self_attention_blocks(model.model.diffusion_model)), family)
    patched = add_guide(model, Guide(0.3, blocks, Reference(samples, None, 0)))
    return step_row(model, patched, family, pixels, repeats, "one reference")
