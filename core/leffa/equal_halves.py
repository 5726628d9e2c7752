"""Work that both halves of classifier-free guidance have in common.

Up to the first self-attention the halves see the same input: they differ in the reference alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor, nn

from ..patches.attention import Options, with_patches

SHARED_BLOCKS = (("input", 0), ("input", 1))  # the first convolution, and the residual block behind it


def share_equal_halves(options: Options, are_equal: bool = False) -> Options:
    """Copies `transformer_options` so that the layers before the first self-attention compute equal halves once.

    Args:
        are_equal: whether the halves are known to be equal. Else they are compared, for which the program has to wait
            for the device.
    """
    convolution, residual = (partial(each, are_equal) for each in (_convolution, _residual))
    return with_patches(options, "forward_timestep_embed_patch", (nn.Conv2d, convolution), (ResBlock, residual))


def _convolution(
    are_equal: bool, layer: nn.Module, x: Tensor, emb: Tensor, context: Any, options: Options, *_: Any
) -> Tensor:
    rows = _distinct_rows(options, are_equal, x)
    return layer(x[:rows]).repeat(len(x) // rows, 1, 1, 1)


def _residual(
    are_equal: bool, layer: nn.Module, x: Tensor, emb: Tensor, context: Any, options: Options, *_: Any
) -> Tensor:
    rows = _distinct_rows(options, are_equal, x, emb)
    return layer(x[:rows], emb[:rows]).repeat(len(x) // rows, 1, 1, 1)


def _distinct_rows(options: Options, are_equal: bool, *inputs: Tensor) -> int:
    """How many rows there are before they repeat, half by half."""
    halves = len(options["cond_or_uncond"])
    rows = len(inputs[0])
    if options["block"] not in SHARED_BLOCKS or halves == 1:
        return rows
    for tensor in () if are_equal else inputs:
        first, *others = tensor.chunk(halves)
        if not all(torch.equal(first, other) for other in others):
            return rows
    return rows // halves
