"""U-Nets: all tokens are image tokens, the frames of a video lie in the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfy.ldm.modules.attention import SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel
from torch import Tensor

from ..attention import AttentionCall, Handler, Options, route_self_attention
from ..blocks import Block, Layer
from ..unet import self_attention_blocks, self_attention_layers


class UNetAttentions:
    """The spatial self-attentions of a U-Net."""

    of_picture: frozenset[str] = frozenset()

    def __init__(self, unet: UNetModel) -> None:
        self.blocks = self_attention_blocks(unet)
        self.is_video = any(isinstance(module, SpatialVideoTransformer) for module in unet.modules())
        self._unet = unet
        self._layers = self_attention_layers(unet)

    def frames(self, latents: Sequence[int]) -> int:
        """1: frames lie in the batch."""
        return 1

    def route(self, x: Tensor, inputs: Mapping[str, Any], options: Options, handler: Handler) -> Options:
        """Routes one forward pass; the attention of a video model over time is left alone.

        So is what an upscaler has in place of self-attention, a second one to the text, which ComfyUI calls by the
        same name.
        """
        spatial = _spatial_only(handler) if self.is_video else handler
        return route_self_attention(options, lambda call: spatial(call) if call.layer in self._layers else call.plain())

    def recorded(self, blocks: frozenset[Block], latent: Sequence[int]) -> int:
        """How many numbers the keys and values of some blocks are for one sample, of shape (C, H, W)."""
        tokens = _tokens_of_blocks(self._unet, latent[-2], latent[-1])
        return sum(
            2 * tokens[block] * layer.attn1.heads * layer.attn1.dim_head
            for (block, _), layer in self._layers.items()
            if block in blocks
        )


def _tokens_of_blocks(unet: UNetModel, height: int, width: int) -> dict[Block, int]:
    """How many tokens a latent has in each block: each step down halves it, rounding up."""
    sizes = []
    for block in unet.input_blocks:
        if any(isinstance(module, Downsample) for module in block):
            height, width = -(-height // 2), -(-width // 2)
        sizes.append(height * width)
    going_down = {("input", number): size for number, size in enumerate(sizes)}
    # Going up, each block takes in what one of them gave.
    return going_down | {("middle", 0): sizes[-1]} | {("output", at): size for at, size in enumerate(reversed(sizes))}


def _spatial_only(handler: Handler) -> Handler:
    """Leaves attention over time alone, which carries the labels of the spatial attention that runs before it."""
    seen: set[Layer] = set()

    def handle(call: AttentionCall) -> Tensor:
        if call.layer in seen:
            return call.plain()
        seen.add(call.layer)
        return handler(call)

    return handle
