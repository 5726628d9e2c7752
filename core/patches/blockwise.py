"""A U-Net's forward pass block by block, so that its blocks can be recomputed for their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import (
    UNetModel,
    forward_timestep_embed,
    timestep_embedding,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .attention import Options
from .blocks import Block


def checkpointed(
    unet: UNetModel,
    x: Tensor,
    timesteps: Tensor,
    context: Tensor | None,
    y: Tensor | None,
    control: None,
    options: Options,
) -> Tensor:
    """What the host's U-Net computes, keeping for the backward pass only what goes from block to block.

    Of the host's patches, those inside transformer layers act; they see a block twice, and must not count.

    Args:
        unet: of an image model.
        x: (B, c, h, w).
        timesteps: (B,).
        context: (B, tokens, width); None for a U-Net without text.
        y: (B, width), where the family has it.
        control: none; at its place in the host's signature.
        options: the host's transformer_options.
    """
    emb = unet.time_embed(timestep_embedding(timesteps, unet.model_channels).to(x.dtype))
    if y is not None:
        emb = emb + unet.label_emb(y)
    options = {**options, "original_shape": list(x.shape)}

    def through(module: torch.nn.Module, block: Block, h: Tensor, shape: torch.Size | None = None) -> Tensor:
        inside = {**options, "block": block}
        arguments = module, h, emb, context, inside, shape
        return checkpoint(forward_timestep_embed, *arguments, use_reentrant=False, preserve_rng_state=False)

    h, skipped = x, []
    for number, module in enumerate(unet.input_blocks):
        h = through(module, ("input", number), h)
        skipped.append(h)
    if unet.middle_block is not None:
        h = through(unet.middle_block, ("middle", 0), h)
    for number, module in enumerate(unet.output_blocks):
        h = torch.cat([h, skipped.pop()], dim=1)
        h = through(module, ("output", number), h, skipped[-1].shape if skipped else None)
    return unet.out(h.type(x.dtype))


def pass_of(gradient_checkpointing: bool) -> Callable[..., Tensor]:
    """How a U-Net is passed through: by `checkpointed` if so chosen and gradients are needed, else by ComfyUI's own."""
    return checkpointed if gradient_checkpointing and torch.is_grad_enabled() else UNetModel.forward


def differentiable(func: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """An override of the host's attention with one that has a gradient; not all of them do."""
    return attention_pytorch(q, k, v, *args, **kwargs)
