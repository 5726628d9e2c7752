"""U-Nets: all tokens are image tokens, the frames of a video lie in the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfy.ldm.modules.attention import SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ..attention import AttentionCall, Handler, Options, route_self_attention
from ..blocks import Layer
from ..unet import self_attention_blocks


class UNetAttentions:
    """The spatial self-attentions of a U-Net."""

    of_picture: frozenset[str] = frozenset()

    def __init__(self, unet: UNetModel) -> None:
        self.layers = self_attention_blocks(unet)
        self.is_video = any(isinstance(module, SpatialVideoTransformer) for module in unet.modules())

    def frames(self, latents: Sequence[int]) -> int:
        """1: frames lie in the batch."""
        return 1

    def route(self, x: Tensor, inputs: Mapping[str, Any], options: Options, handler: Handler) -> Options:
        """Routes one forward pass; the attention of a video model over time is left alone."""
        return route_self_attention(options, _spatial_only(handler) if self.is_video else handler)


def _spatial_only(handler: Handler) -> Handler:
    """Leaves attention over time alone, which carries the labels of the spatial attention that runs before it."""
    seen: set[Layer] = set()

    def handle(call: AttentionCall) -> Tensor:
        if call.layer in seen:
            return call.plain()
        seen.add(call.layer)
        return handler(call)

    return handle
