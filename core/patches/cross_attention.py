"""Routes the cross-attentions of one U-Net forward pass through a handler.

The counterpart of `self_attention`, by the same means: two patches that tell which attention is next, and the override
that computes it. `attn2_replace` is left free, because the host has room for only one of them in a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..kernels.attention import Attend
from .blocks import Layer
from .self_attention import Chunk, Options, chunks_of


@dataclass(frozen=True)
class CrossAttentionCall:
    """One cross-attention as the model is about to compute it.

    Attributes:
        q: (G * B, N, C), projected, heads not split, chunk by chunk.
        k, v: (G * B, L, C), projected text; L = 0 where `CrossAttentionHandler.context` left the text out.
        attend: the attention the model would use: the host's function and any override set before ours.
        layer: which transformer layer it is.
        grid: (h, w) of the block's tokens.
        chunks: the G chunks in the order of dim 0.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    attend: Attend
    layer: Layer
    grid: tuple[int, int]
    chunks: tuple[Chunk, ...]


class CrossAttentionHandler(Protocol):
    """What one forward pass does in its cross-attentions."""

    def context(self, layer: Layer, chunks: tuple[Chunk, ...], context: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Chooses what the layer projects to keys and values; both are (G * B, L, width of the text)."""

    def attend(self, call: CrossAttentionCall) -> Tensor:
        """Computes the attention: (G * B, N, C)."""


def route_cross_attention(options: Options, handler: CrossAttentionHandler) -> Options:
    """Copies `transformer_options` so that `handler` computes the cross-attentions of one forward pass.

    Self-attention is left alone, and an override that is already there keeps working.
    """
    previous = options.get("optimized_attention_override")
    layer_ahead: Layer | None = None  # set between a cross-attention's patches and its attention

    def enter_self_attention(n: Tensor, context: Tensor, value: Tensor, extra_options: Options) -> tuple[Tensor, ...]:
        nonlocal layer_ahead
        layer_ahead = None
        return n, context, value

    def enter_cross_attention(n: Tensor, context: Tensor, value: Tensor, extra_options: Options) -> tuple[Tensor, ...]:
        nonlocal layer_ahead
        layer_ahead = extra_options["block"], extra_options["block_index"]
        return n, *handler.context(layer_ahead, chunks_of(extra_options), context, value)

    def override(func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal layer_ahead

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if previous is None:
                return func(q, k, v, *args, **kwargs)
            return previous(func, q, k, v, *args, **kwargs)

        if layer_ahead is None:
            return attend(q, k, v)
        layer, layer_ahead = layer_ahead, None
        extra_options = kwargs["transformer_options"]
        height, width = extra_options["activations_shape"][-2:]
        call = CrossAttentionCall(q, k, v, attend, layer, (height, width), chunks_of(extra_options))
        return handler.attend(call)

    patches = options.get("patches", {})
    return {
        **options,
        "optimized_attention_override": override,
        "patches": {
            **patches,
            "attn1_patch": [*patches.get("attn1_patch", []), enter_self_attention],
            "attn2_patch": [*patches.get("attn2_patch", []), enter_cross_attention],
        },
    }
