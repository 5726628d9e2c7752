"""Work that both halves of classifier-free guidance have in common.

Up to the first self-attention the halves see the same input: they differ in the reference alone.
"""

from __future__ import annotations

from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor, nn

from ..patches.attention import Options, with_patches

SHARED_BLOCKS = (("input", 0), ("input", 1))  # the first convolution, and the residual block behind it


def share_equal_halves(options: Options) -> Options:
    """Copies `transformer_options` so that the layers before the first self-attention compute equal halves once."""
    return with_patches(options, "forward_timestep_embed_patch", (nn.Conv2d, _convolution), (ResBlock, _residual))


def _convolution(layer: nn.Module, x: Tensor, emb: Tensor, context: Any, options: Options, *_: Any) -> Tensor:
    rows = _distinct_rows(options, x)
    return layer(x[:rows]).repeat(len(x) // rows, 1, 1, 1)


def _residual(layer: nn.Module, x: Tensor, emb: Tensor, context: Any, options: Options, *_: Any) -> Tensor:
    rows = _distinct_rows(options, x, emb)
    return layer(x[:rows], emb[:rows]).repeat(len(x) // rows, 1, 1, 1)


def _distinct_rows(options: Options, *inputs: Tensor) -> int:
    """How many rows there are before they repeat, half by half."""
    halves = len(options["cond_or_uncond"])
    rows = len(inputs[0])
    if options["block"] not in SHARED_BLOCKS or halves == 1:
        return rows
    for tensor in inputs:
        first, *others = tensor.chunk(halves)
        if not all(torch.equal(first, other) for other in others):
            return rows
    return rows // halves
