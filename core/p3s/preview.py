"""A quick picture of what a model makes of a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.sample
import torch
from torch import Tensor

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

STEPS, CFG = 12, 7.5


def sample_preview(model: ModelPatcher, positive: list[Any], negative: list[Any], like: Tensor, seed: int) -> Tensor:
    """Samples one latent (1, c, h, w) of the size of another, in few steps."""
    noise = torch.randn(like[:1].shape, generator=torch.Generator().manual_seed(seed))
    settings = (STEPS, CFG, "ddim", "ddim_uniform")
    empty = torch.zeros_like(noise)
    return comfy.sample.sample(model, noise, *settings, positive, negative, empty, seed=seed, disable_pbar=True)
