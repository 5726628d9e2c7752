"""Weights of the text encoders: drawn from a seed, so that every prompt has an embedding of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .families import TextEncoderSize
from .layout import text_encoder_shapes


def state_dict(size: TextEncoderSize, generator: torch.Generator) -> dict[str, Tensor]:
    """Tensors of one text tower under their names in a checkpoint."""
    return {name: _tensor(name, shape, generator) for name, shape in text_encoder_shapes(size).items()}


def _tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name.endswith("position_ids"):
        return torch.arange(shape[-1]).expand(shape).contiguous()
    if name.endswith("logit_scale"):
        return torch.tensor(math.log(100.0))
    if "norm" in name or "ln_" in name:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    if "embedding" in name:
        return torch.randn(shape, generator=generator)
    return torch.randn(shape, generator=generator) / math.sqrt(shape[-1])
