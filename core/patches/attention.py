"""Routes the attentions of one U-Net forward pass through handlers.

ComfyUI calls every attention function, self and cross alike, through `optimized_attention_override`, which sees
q, k, v but not which of the two it serves. Two patches tell them apart: `attn1_patch` runs right before a
self-attention, `attn2_patch` before a cross-attention of the same block. `attn2_replace` is left free, because there is
room for only one of them in a block.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..kernels.attention import Attend
from .blocks import Block, Layer

Options = dict[str, Any]  # ComfyUI's transformer_options
Chunk = tuple[int, object]  # index into the list of conditionings, uuid of the conditioning
Override = Callable[..., Tensor]  # an optimized_attention_override


class AttendMasked(Protocol):
    """`Attend` that may be given a mask."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, C), (B, L, C) twice, and a mask in ComfyUI's form -> (B, N, C)."""


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """All tokens of an attention that the picture's are a part of: text, then picture, then references.

    Attributes:
        k, v: (G * B, L, C).
        mask: as the model gives it to ComfyUI's attention, (..., 1 or queries, L); None is none.
        picture: where its keys are.
        references: how many tokens each reference latent has; they come last, in their order.
        queries: where the picture's are among the queries, which may lack the text.
        attend: as in an `AttentionCall`, with a mask.
    """

    k: Tensor
    v: Tensor
    mask: Tensor | None
    picture: slice
    references: tuple[int, ...]
    queries: slice
    attend: AttendMasked

    def of_chunks(self, numbers: Sequence[int], count: int) -> TokenSequence:
        """What some of the `count` chunks have of it."""
        mask = self.mask
        if mask is not None and mask.ndim > 2 and len(mask) > 1:
            mask = rows_of_chunks(mask, numbers, count)
        k, v = (rows_of_chunks(each, numbers, count) for each in (self.k, self.v))
        return replace(self, k=k, v=v, mask=mask)

    def attend_to_more(self, q: Tensor, tokens: Tensor | None, k: Tensor, v: Tensor) -> Tensor:
        """The attention of the picture's queries, with other keys and values for its tokens and more behind all.

        Args:
            q: (G * B, n, C).
            tokens: which of the N tokens of the picture they are; None is all.
            k, v: (G * B, N + M, C), of the picture and of M more tokens, which no mask hides.

        Returns:
            (G * B, n, C).
        """
        first, last = self.picture.start, self.picture.stop
        own = last - first
        keys, values = (
            torch.cat([all_tokens[:, :first], new[:, :own], all_tokens[:, last:], new[:, own:]], dim=1)
            for all_tokens, new in ((self.k, k), (self.v, v))
        )
        mask = self.mask
        if mask is not None:
            if mask.shape[-2] > 1:
                mask = mask[..., self.queries, :]
                mask = mask if tokens is None else mask[..., tokens, :]
            seen = mask.new_full((*mask.shape[:-1], k.shape[1] - own), float(mask.dtype == torch.bool))
            mask = torch.cat([mask, seen], dim=-1)
        return self.attend(q, keys, values, mask)


@dataclass(frozen=True)
class AttentionCall:
    """One attention as the model is about to compute it.

    Attributes:
        q: (G * B, N, C), projected, heads not split, chunk by chunk.
        k, v: (G * B, N, C) of the picture in a self-attention, (G * B, L, C) of the text in a cross-attention; L = 0
            where `CrossAttentionHandler.context` left the text out.
        attend: the attention the model would use: ComfyUI's function and any override set before ours.
        block: label of the model's block.
        depth: number of the transformer layer inside the block.
        grid: (h, w) of the block's tokens.
        chunks: the G chunks in the order of dim 0.
        frames: how many pictures of h x w tokens lie one after the other in N.
        joint: where q, k, v are only a part of the tokens (image without text): computes this part, (G * B, N, C), of
            the model's attention over all of them.
        heads: how many heads C holds.
        sequence: gives all of the tokens, where q, k, v are only a part of them.
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
    heads: int = 1
    sequence: Callable[[], TokenSequence] | None = None

    @property
    def layer(self) -> Layer:
        """Which transformer layer it is."""
        return self.block, self.depth

    def plain(self) -> Tensor:
        """The attention as the model would compute it without a handler."""
        return self.attend(self.q, self.k, self.v) if self.joint is None else self.joint()


Handler = Callable[[AttentionCall], Tensor]


class CrossAttentionHandler(Protocol):
    """What one forward pass does in its cross-attentions."""

    def context(self, layer: Layer, chunks: tuple[Chunk, ...], context: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Chooses what the layer projects to keys and values; both are (G * B, L, width of the text)."""

    def attend(self, call: AttentionCall) -> Tensor:
        """Computes the attention: (G * B, N, C)."""


def route_self_attention(options: Options, handler: Handler) -> Options:
    """Copies `transformer_options` so that `handler` computes the self-attentions of one forward pass.

    All other attentions are left alone. An override that is there already keeps working: it is what
    `AttentionCall.attend` calls.
    """
    return _routed(options, _Router(options, handler, None))


def route_cross_attention(options: Options, handler: CrossAttentionHandler) -> Options:
    """The same for the cross-attentions."""
    return _routed(options, _Router(options, None, handler))


class _Router:
    """Knows during one forward pass which attention comes next."""

    def __init__(self, options: Options, for_self: Handler | None, for_cross: CrossAttentionHandler | None) -> None:
        self._previous: Override | None = options.get("optimized_attention_override")
        self._for_self = for_self
        self._for_cross = for_cross
        self._next: Handler | None = None  # set between an attention's patch and the attention itself

    def before_self(self, n: Tensor, context: Tensor, value: Tensor, options: Options) -> tuple[Tensor, ...]:
        """An `attn1_patch`."""
        self._next = self._for_self
        return n, context, value

    def before_cross(self, n: Tensor, context: Tensor, value: Tensor, options: Options) -> tuple[Tensor, ...]:
        """An `attn2_patch`."""
        self._next = None
        if self._for_cross is None:
            return n, context, value
        self._next = self._for_cross.attend
        layer = options["block"], options["block_index"]
        return n, *self._for_cross.context(layer, chunks_of(options), context, value)

    def override(
        self, func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """An `optimized_attention_override`."""

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if self._previous is None:
                return func(q, k, v, *args, **kwargs)
            return self._previous(func, q, k, v, *args, **kwargs)

        handler, self._next = self._next, None
        if handler is None:
            return attend(q, k, v)
        options = kwargs["transformer_options"]
        height, width = options["activations_shape"][-2:]
        layer = options["block"], options["block_index"]
        heads = args[0] if args else kwargs["heads"]
        return handler(AttentionCall(q, k, v, attend, *layer, (height, width), chunks_of(options), heads=heads))


def _routed(options: Options, router: _Router) -> Options:
    patched = with_patches(options, "attn1_patch", opaque(router.before_self))
    patched = with_patches(patched, "attn2_patch", opaque(router.before_cross))
    return {**patched, "optimized_attention_override": opaque(router.override)}


def with_patches(options: Options, kind: str, *more: object) -> Options:
    """Copies `transformer_options` with more patches of a kind, behind those that are there."""
    patches = options.get("patches", {})
    return {**options, "patches": {**patches, kind: [*patches.get(kind, []), *more]}}


def opaque(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps torch.compile out of a function in `transformer_options`.

    Some nodes compile single blocks, and would compile them anew for every pass's own functions.
    """
    # Whoever compiles has imported this; it takes a second and is not needed otherwise.
    return torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function


def rows_of_chunks(t: Tensor, numbers: Sequence[int], count: int) -> Tensor:
    """The rows (g * B, ...) of some of the `count` chunks of (G * B, ...)."""
    chunks = t.unflatten(0, (count, -1))
    return torch.cat([chunks[number] for number in numbers])  # indices would have to be brought to the device


def chunks_of(options: Options) -> tuple[Chunk, ...]:
    """The chunks of a forward pass in the order of dim 0."""
    return tuple(zip(options["cond_or_uncond"], options["uuids"], strict=True))
