"""Transformers: image and text tokens may share an attention, the frames of a video are one sequence of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from operator import attrgetter
from statistics import mode
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import AttendMasked, AttentionCall, Handler, Options, TokenSequence, chunks_of, opaque
from ..blocks import Block, Layer

Inputs = Mapping[str, Any]  # what a forward pass is given by name
Grid = tuple[int, int, int]  # frames, height, width in tokens


class Named(Enum):
    """How an attention is told which block it belongs to."""

    BY_HOST = auto()  # ComfyUI writes it into the options
    BY_US = auto()  # a replacement of the block writes it, where ComfyUI lets blocks be replaced
    BY_ORDER = auto()  # attentions are counted; where blocks cannot be replaced, none can be skipped either


def token_size(module: Any) -> Grid:
    """(frames, height, width) of a token in latent cells, of a module with `patch_size`: 2, (2, 2) or (1, 2, 2)."""
    size = module.patch_size
    frames, height, width = (1, size, size) if isinstance(size, int) else (1, *size)[-3:]
    return frames, height, width


@dataclass(frozen=True)
class Layout:
    """How a family arranges its tokens and names its blocks: one line of the table.

    Attributes:
        name: what users call it.
        blocks: where the module has its blocks, by ComfyUI's name of their kind, in the order they run.
        is_video: whether latents are the frames of a video.
        named: how an attention is told which block it belongs to.
        patch: (frames, height, width) of a token in latent cells.
        image_first: whether the image tokens come before all others; they come last otherwise.
        keys_only: whether the text's tokens are among the keys only, not among the queries.
        after: how many tokens follow the image tokens where they come last.
        attentions: how many self-attentions of the picture a block has; they come before any other attention.
        others: how many other attentions a block has, for counting.
        before: how many attentions run before the first block, for counting.
        refused: inputs that bring tokens which cannot be told from the picture's.
        of_picture: entries of a prompt that must be as large as the picture.
        unreadable: why no picture can be read with another's prompt; empty where it can.
        unpaintable: why no picture comes of what it paints; empty where one does.
        references: whether the tokens of reference latents come right behind the picture's, and ComfyUI counts them.
    """

    name: str
    blocks: Mapping[str, str]
    is_video: bool = False
    named: Named = Named.BY_HOST
    patch: Callable[[Any], Grid] = token_size
    image_first: bool = False
    keys_only: bool = False
    after: Callable[[Any, Grid, Inputs], int] = lambda module, grid, inputs: 0
    attentions: Callable[[Any], int] = lambda block: 1
    others: int = 0
    before: Callable[[Any, Inputs], int] = lambda module, inputs: 0
    refused: Sequence[str] = ()
    of_picture: frozenset[str] = frozenset()
    unreadable: str = ""
    unpaintable: str = ""
    references: bool = False


class TransformerAttentions:
    """The self-attentions of a transformer.

    Args:
        module: the diffusion model.
        layout: of its family.
        has_frames: whether its latents are (B, C, F, H, W).
        node: for messages.
    """

    def __init__(self, module: nn.Module, layout: Layout, has_frames: bool, node: str) -> None:
        self.is_video = layout.is_video and has_frames
        modules = {
            (kind, number): block
            for kind, name in layout.blocks.items()
            for number, block in enumerate(_blocks(attrgetter(name)(module)))
        }
        self.blocks: dict[Block, int] = {label: layout.attentions(block) for label, block in modules.items()}
        self._widths = {label: _width(block) for label, block in modules.items()}
        self.of_picture = layout.of_picture
        self._module = module
        self._layout = layout
        self._node = node

    def frames(self, latents: Sequence[int]) -> int:
        """How many frames of tokens one sample of latents (B, C, F, H, W) has; 1 for pictures."""
        return self._grid(latents)[0] if self.is_video else 1

    def route(self, x: Tensor, inputs: Inputs, options: Options, handler: Handler) -> Options:
        """Routes one forward pass.

        Raises:
            RuntimeError: the pass brings pictures or frames of its own, whose tokens cannot be told from the picture's.
        """
        for name in self._layout.refused:
            if inputs.get(name, options.get(name)) is not None:
                raise RuntimeError(
                    f"{self._node}: the prompt or sampler brings pictures or frames of its own ({name}), whose tokens "
                    "cannot be told from those that are painted. Remove the node that adds them."
                )
        grid = self._grid(x.shape)
        routed = _Routed(handler, self.blocks, grid, options.get("optimized_attention_override"))
        routed.layout = self._layout
        routed.after = self._layout.after(self._module, grid, inputs)
        if self._layout.named is Named.BY_ORDER:
            routed.order = self._order(inputs)
        # A label that an earlier pass left would make what runs before the first block look like a part of it. The
        # kind is known where there is one kind only, and some models say no more than the number.
        fresh = {name: value for name, value in options.items() if name != "block_index"}
        fresh["block_type"] = next(iter(self._layout.blocks))
        fresh["optimized_attention_override"] = opaque(routed.attention)
        if self._layout.named is Named.BY_US:
            replacements = options.get("patches_replace", {})
            fresh["patches_replace"] = {**replacements, "dit": self._naming(replacements.get("dit", {}))}
        return fresh

    def recorded(self, blocks: frozenset[Block], latent: Sequence[int]) -> int:
        """How many numbers the keys and values of some blocks are for a (C, H, W) or (C, F, H, W) sample."""
        tokens = math.prod(self._grid((1, *latent)))
        widths = (number * self._widths[label] for label, number in self.blocks.items() if label in blocks)
        return 2 * tokens * sum(widths)

    def _grid(self, latents: Sequence[int]) -> Grid:
        """The tokens of latents (B, C, H, W) or (B, C, F, H, W); what is no whole patch is filled up by the model."""
        size = (1, *latents[2:])[-3:]
        frames, height, width = (-(-n // p) for n, p in zip(size, self._layout.patch(self._module), strict=True))
        return frames, height, width

    def _order(self, inputs: Inputs) -> Iterator[Layer | None]:
        """The attentions in the order they run: a layer, or None for those that are no self-attention of the picture.

        Raises:
            RuntimeError: at an attention more than the model has.
        """
        yield from [None] * self._layout.before(self._module, inputs)
        for block, attentions in self.blocks.items():
            yield from ((block, depth) for depth in range(attentions))
            yield from [None] * self._layout.others
        raise RuntimeError(
            f"{self._node}: the model computed more attentions in one pass than its blocks have, so they cannot be "
            "told apart. Remove what was put into the model: another patch, an adapter."
        )

    def _naming(self, replacements: Mapping[Any, Any]) -> dict[Any, Any]:
        """Block replacements that say in the options which block it is, and then do what the given ones do."""

        def naming(block: Block, replacement: Callable[..., Any] | None) -> Callable[..., Any]:
            def replace(args: dict[str, Any], extra: dict[str, Any]) -> Any:
                named = {**args["transformer_options"], "block_type": block[0], "block_index": block[1]}
                args = {**args, "transformer_options": named}
                return extra["original_block"](args) if replacement is None else replacement(args, extra)

            return replace

        keys = {(f"{kind}_block", number): (kind, number) for kind, number in self.blocks}
        return {**replacements, **{key: naming(block, replacements.get(key)) for key, block in keys.items()}}


class _Routed:
    """ComfyUI's attention function during one forward pass."""

    layout: Layout
    after = 0
    order: Iterator[Layer | None] | None = None

    def __init__(
        self,
        handler: Handler,
        blocks: Mapping[Block, int],
        grid: Grid,
        previous: Callable[..., Tensor] | None,
    ) -> None:
        self._handler = handler
        self._blocks = blocks
        self._grid = grid
        self._previous = previous
        self._latest: Layer = (("", 0), -1)

    def attention(
        self, func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """An `optimized_attention_override`."""
        layer = self._layer(kwargs["transformer_options"])
        if layer is None:
            return self._attention(func, q, k, v, *args, **kwargs)
        heads = args[0] if args else kwargs["heads"]
        heads_first = kwargs.get("skip_reshape", False)
        stays_split = kwargs.pop("skip_output_reshape", False)

        mask = args[1] if len(args) > 1 else kwargs.get("mask")

        def attention(q: Tensor, mask: Tensor | None) -> Tensor:
            if len(args) > 1:
                return self._attention(func, q, k, v, heads, mask, *args[2:], **kwargs)
            masked = {"mask": mask} if "mask" in kwargs else {}
            return self._attention(func, q, k, v, *args, **{**kwargs, **masked})

        image, keys = self._image(_length(q, kwargs), _length(k, kwargs), kwargs["transformer_options"])
        plain = {name: value for name, value in kwargs.items() if name not in PLAINLY}
        is_part = _length(k, kwargs) != math.prod(self._grid)
        joint = _Joint(attention, q, mask, image, heads_first) if mask is not None or is_part else None

        def sequence() -> TokenSequence:
            every = slice(None)
            references = tuple(kwargs["transformer_options"].get("reference_image_num_tokens", ()))
            k_all, v_all = (_tokens(_for_each_head(t, heads, heads_first), every, heads_first) for t in (k, v))
            attend = self._attend(func, heads, plain)
            return TokenSequence(k_all, v_all, mask, keys, references, image, attend)

        out = self._handler(
            AttentionCall(
                q=_tokens(q, image, heads_first),
                k=_tokens(_for_each_head(k, heads, heads_first), keys, heads_first),
                v=_tokens(_for_each_head(v, heads, heads_first), keys, heads_first),
                attend=self._attend(func, heads, plain),
                block=layer[0],
                depth=layer[1],
                grid=self._grid[1:],
                chunks=chunks_of(kwargs["transformer_options"]),
                frames=self._grid[0],
                joint=joint,
                heads=heads,
                sequence=sequence if joint is not None else None,
            )
        )
        out = out if joint is None else joint.with_image(out)
        # As in memory where no handler is: what follows may round by it.
        return out.unflatten(2, (heads, -1)).transpose(1, 2).contiguous() if stays_split else out

    def _attention(self, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return func(*args, **kwargs) if self._previous is None else self._previous(func, *args, **kwargs)

    def _attend(self, func: Callable[..., Tensor], heads: int, kwargs: dict[str, Any]) -> AttendMasked:
        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
            masked = {} if mask is None else {"mask": mask}
            return self._attention(func, q, k, v, heads, **kwargs, **masked)

        return attend

    def _layer(self, options: Options) -> Layer | None:
        """Block and number of a self-attention inside it; None for any other attention."""
        if self.order is not None:
            return next(self.order)
        block: Block = (options.get("block_type", ""), options.get("block_index", -1))
        if block not in self._blocks:
            return None
        self._latest = (block, self._latest[1] + 1 if block == self._latest[0] else 0)
        return self._latest if self._latest[1] < self._blocks[block] else None

    def _image(self, queries: int, keys: int, options: Options) -> tuple[slice, slice]:
        """Which of so many queries and keys are the picture's."""
        tokens = math.prod(self._grid)
        after = self.after + sum(options.get("reference_image_num_tokens", ()))
        first = [0 if self.layout.image_first else there - after - tokens for there in (queries, keys)]
        may_differ = self.layout.keys_only and queries <= keys
        if min(first) < 0 or first[0] + tokens > queries or not (queries == keys or may_differ):
            frames, height, width = self._grid
            raise RuntimeError(
                f"Attention cannot be read: the picture has {frames} x {height} x {width} tokens, but an attention "
                f"was given {queries} queries and {keys} keys. Remove what adds or takes away tokens: guide frames, "
                "token merging, another patch."
            )
        return slice(first[0], first[0] + tokens), slice(first[1], first[1] + tokens)


# What a plain attention over tokens (B, N, C) is not told.
PLAINLY = ("heads", "mask", "skip_reshape", "enable_gqa")


class _Joint:
    """The attention of text and image tokens together, computed when first needed."""

    def __init__(
        self,
        attention: Callable[[Tensor, Tensor | None], Tensor],
        q: Tensor,
        mask: Tensor | None,
        image: slice,
        heads_first: bool,
    ) -> None:
        self._attention = attention
        self._q = q
        self._mask = mask
        self._image = image
        self._tokens = 2 if heads_first else 1
        self._out: Tensor | None = None

    def __call__(self) -> Tensor:
        """The image tokens' part of the output."""
        if self._out is None:
            self._out = self._attention(self._q, self._mask)
        return self._out[:, self._image]

    def with_image(self, image: Tensor) -> Tensor:
        """The whole output with (G * B, N, C) as its image tokens; their own is not computed if nobody asked for it."""
        if self._out is None:
            return self._around(image)
        own = self()
        if image.data_ptr() != own.data_ptr():
            own.copy_(image)
        return self._out

    def _around(self, image: Tensor) -> Tensor:
        first, last = self._image.start, self._image.stop
        if last - first == self._q.shape[self._tokens]:
            return image
        mask = self._mask
        if mask is not None and mask.shape[-2] > 1:
            mask = _without(mask, -2, first, last)
        others = self._attention(_without(self._q, self._tokens, first, last), mask)
        return torch.cat([others[:, :first], image, others[:, first:]], dim=1)


def _without(t: Tensor, dim: int, first: int, last: int) -> Tensor:
    """A tensor without a stretch of one dimension."""
    return torch.cat([t.narrow(dim, 0, first), t.narrow(dim, last, t.shape[dim] - last)], dim)


def _width(block: nn.Module) -> int:
    """C of a block's keys: that of its square projections; where all are fused, what most of them take."""
    linears: list[Any] = [each for each in block.modules() if hasattr(each, "in_features")]
    square = [each.in_features for each in linears if each.in_features == each.out_features]
    return max(square) if square else mode([each.in_features for each in linears] or [0])


def _blocks(found: Any) -> list[Any]:
    """The blocks of a list or of a dictionary; of levels that are lists of their own, those that attend."""
    blocks = list(found.values() if isinstance(found, nn.ModuleDict) else found)
    if blocks and isinstance(blocks[0], nn.ModuleList):
        return [block for level in blocks for block in level if hasattr(block, "attention")]
    return blocks


def _length(t: Tensor, kwargs: Mapping[str, Any]) -> int:
    return t.shape[2 if kwargs.get("skip_reshape", False) else 1]


def _for_each_head(t: Tensor, heads: int, heads_first: bool) -> Tensor:
    """Keys or values, those that several heads of the queries share repeated for each of them."""
    if not heads_first or t.shape[1] == heads:
        return t
    return t.repeat_interleave(heads // t.shape[1], dim=1)


def _tokens(t: Tensor, tokens: slice, heads_first: bool) -> Tensor:
    """Some tokens of (B, heads, N, d), (B, N, heads, d) or (B, N, C) as (B, n, C)."""
    return (t[:, :, tokens].transpose(1, 2) if heads_first else t[:, tokens]).flatten(2)
