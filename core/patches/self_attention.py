"""Routes the self-attentions of one U-Net forward pass through a handler.

The host calls every attention function, self and cross alike, through `optimized_attention_override`, which sees
q, k, v but not which of the two it serves. Two patches that change nothing tell them apart: `attn1_patch` runs right
before a self-attention, `attn2_patch` before a cross-attention of the same block.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernels.attention import Attend
from .blocks import Block

Options = dict[str, Any]  # the host's transformer_options
Chunk = tuple[int, object]  # index into the list of conditionings, uuid of the conditioning


@dataclass(frozen=True)
class SelfAttentionCall:
    """One self-attention as the model is about to compute it.

    Attributes:
        q, k, v: (G * B, N, C), projected, heads not split, chunk by chunk.
        attend: the attention the model would use: the host's function and any override set before ours.
        block: label of the U-Net block.
        depth: number of the transformer layer inside the block.
        grid: (h, w) of the block's tokens.
        chunks: the G chunks in the order of dim 0.
        frames: how many pictures of h x w tokens lie one after the other in N.
        joint: where q, k, v are only a part of the tokens (image without text): computes this part, (G * B, N, C), of
            the model's attention over all of them.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    attend: Attend
    block: Block
    depth: int
    grid: tuple[int, int]
    chunks: tuple[Chunk, ...]
    frames: int = 1
    joint: Callable[[], Tensor] | None = None

    def plain(self) -> Tensor:
        """The attention as the model would compute it without a handler."""
        return self.attend(self.q, self.k, self.v) if self.joint is None else self.joint()


Handler = Callable[[SelfAttentionCall], Tensor]


def route_self_attention(options: Options, handler: Handler) -> Options:
    """Copies `transformer_options` so that `handler` computes the self-attentions of one forward pass.

    Cross-attention, and whatever else goes through the host's attention function, is left alone. An override that
    is already there keeps working: it is what `SelfAttentionCall.attend` calls.
    """
    previous = options.get("optimized_attention_override")
    self_attention_is_next = False

    def enter_self_attention(n: Tensor, context: Tensor, value: Tensor, extra_options: Options) -> tuple[Tensor, ...]:
        nonlocal self_attention_is_next
        self_attention_is_next = True
        return n, context, value

    def enter_cross_attention(n: Tensor, context: Tensor, value: Tensor, extra_options: Options) -> tuple[Tensor, ...]:
        nonlocal self_attention_is_next
        self_attention_is_next = False
        return n, context, value

    def override(func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal self_attention_is_next

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if previous is None:
                return func(q, k, v, *args, **kwargs)
            return previous(func, q, k, v, *args, **kwargs)

        if not self_attention_is_next:
            return attend(q, k, v)
        self_attention_is_next = False
        return handler(_call(q, k, v, attend, kwargs["transformer_options"]))

    patches = options.get("patches", {})
    return {
        **options,
        "optimized_attention_override": opaque(override),
        "patches": {
            **patches,
            "attn1_patch": [*patches.get("attn1_patch", []), opaque(enter_self_attention)],
            "attn2_patch": [*patches.get("attn2_patch", []), opaque(enter_cross_attention)],
        },
    }


def opaque(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps torch.compile out of a function in `transformer_options`.

    The host compiles models without a check that these options are still the same, so that compiled code would go on
    with the functions of an earlier pass.
    """
    # Whoever compiles has imported this; it takes a second and is not needed otherwise.
    return torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function


def chunks_of(options: Options) -> tuple[Chunk, ...]:
    """The chunks of a forward pass in the order of dim 0."""
    return tuple(zip(options["cond_or_uncond"], options["uuids"], strict=True))


def _call(q: Tensor, k: Tensor, v: Tensor, attend: Attend, options: Options) -> SelfAttentionCall:
    height, width = options["activations_shape"][-2:]
    return SelfAttentionCall(
        q=q,
        k=k,
        v=v,
        attend=attend,
        block=options["block"],
        depth=options["block_index"],
        grid=(height, width),
        chunks=chunks_of(options),
    )
