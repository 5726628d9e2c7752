"""Weights of the U-Nets: drawn from a seed, with a denoiser written over them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .denoiser import Denoiser
from .families import UNetSize
from .layout import unet_shapes


def state_dict(size: UNetSize, generator: torch.Generator) -> dict[str, Tensor]:
    """Tensors of a U-Net under the names they have inside it."""
    weights = {name: _tensor(name, shape, generator) for name, shape in unet_shapes(size).items()}
    Denoiser(weights, size).write()
    return weights


def _tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) == 1:  # a norm
        return torch.ones(shape)
    return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
