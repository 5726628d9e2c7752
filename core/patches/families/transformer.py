"""Transformers: image and text tokens may share an attention, the frames of a video are one sequence of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...kernels.attention import Attend
from ..attention import AttentionCall, Handler, Options, TokenSequence, chunks_of, opaque
from ..blocks import Block, Layer

APPENDED = ("time_dim_concat", "context_latents")  # inputs of Wan whose tokens ComfyUI puts behind the video's


@dataclass(frozen=True)
class Layout:
    """How a family arranges its tokens and names its blocks.

    Attributes:
        blocks: lists of blocks in the module by ComfyUI's name of their kind.
        is_video: whether latents are the frames of a video.
        names_blocks: whether ComfyUI says at an attention which block it belongs to.
        patch: (height, width) of a token in latent pixels.
        padding: how many tokens without content follow N image tokens.
        attentions: how many self-attentions a block has; they come before any cross-attention.
    """

    blocks: Mapping[str, str]
    is_video: bool = False
    names_blocks: bool = True
    patch: Callable[[Any], tuple[int, int]] = lambda module: (module.patch_size, module.patch_size)
    padding: Callable[[Any, int], int] = lambda module, tokens: 0
    attentions: Callable[[Any], int] = lambda block: 1


class TransformerAttentions:
    """The self-attentions of a transformer. Text comes before the image wherever the two share an attention."""

    def __init__(self, module: nn.Module, layout: Layout) -> None:
        self.is_video = layout.is_video
        self.layers: dict[Block, int] = {
            (kind, number): layout.attentions(block)
            for kind, name in layout.blocks.items()
            for number, block in enumerate(getattr(module, name))
        }
        self._module = module
        self._layout = layout

    def route(self, x: Tensor, inputs: Mapping[str, Any], options: Options, handler: Handler) -> Options:
        """Routes one forward pass.

        Raises:
            RuntimeError: the pass brings frames of its own, which come after those of the video.
        """
        for name in APPENDED:
            if inputs.get(name) is not None:
                raise RuntimeError(
                    f"RefDrop: the prompt brings frames of its own ({name}), which cannot be told from those of the "
                    "video. Remove the node that adds them."
                )
        height, width = (-(-size // patch) for size, patch in zip(x.shape[-2:], self._patch(), strict=True))
        frames = x.shape[2] if x.ndim == 5 else 1
        routed = _Routed(handler, self.layers, (height, width), frames, options.get("optimized_attention_override"))
        routed.padding = self._layout.padding(self._module, frames * height * width)
        # A label that an earlier pass left would make what runs before the first block look like a part of it.
        fresh = {name: value for name, value in options.items() if name not in ("block_type", "block_index")}
        fresh["optimized_attention_override"] = opaque(routed.attention)
        if not self._layout.names_blocks:
            replacements = options.get("patches_replace", {})
            fresh["patches_replace"] = {**replacements, "dit": self._naming(replacements.get("dit", {}))}
        return fresh

    def _patch(self) -> tuple[int, int]:
        return self._layout.patch(self._module)

    def _naming(self, replacements: Mapping[Any, Any]) -> dict[Any, Any]:
        """Block replacements that say in the options which block it is, and then do what the given ones do."""

        def naming(block: Block, replacement: Callable[..., Any] | None) -> Callable[..., Any]:
            def replace(args: dict[str, Any], extra: dict[str, Any]) -> Any:
                named = {**args["transformer_options"], "block_type": block[0], "block_index": block[1]}
                args = {**args, "transformer_options": named}
                return extra["original_block"](args) if replacement is None else replacement(args, extra)

            return replace

        keys = {(f"{kind}_block", number): (kind, number) for kind, number in self.layers}
        return {**replacements, **{key: naming(block, replacements.get(key)) for key, block in keys.items()}}


class _Routed:
    """ComfyUI's attention function during one forward pass."""

    padding = 0

    def __init__(
        self,
        handler: Handler,
        layers: Mapping[Block, int],
        grid: tuple[int, int],
        frames: int,
        previous: Callable[..., Tensor] | None,
    ) -> None:
        self._handler = handler
        self._layers = layers
        self._grid = grid
        self._frames = frames
        self._previous = previous
        self._latest: Layer = (("", 0), -1)

    def attention(
        self, func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        def whole() -> Tensor:
            return self._attention(func, q, k, v, *args, **kwargs)

        layer = self._layer(kwargs["transformer_options"])
        if layer is None:
            return whole()
        image = self._image_tokens(q, k, kwargs)
        heads = args[0] if args else kwargs["heads"]
        plain = {name: value for name, value in kwargs.items() if name not in ("heads", "mask", "skip_reshape")}
        heads_first = kwargs.get("skip_reshape", False)
        mask = args[1] if len(args) > 1 else kwargs.get("mask")
        joint = _Joint(whole, image) if mask is not None or image != slice(0, _length(q, kwargs)) else None

        def sequence() -> TokenSequence:
            every = slice(None)
            references = tuple(kwargs["transformer_options"].get("reference_image_num_tokens", ()))
            return TokenSequence(
                _tokens(k, every, heads_first), _tokens(v, every, heads_first), mask, image, references
            )

        out = self._handler(
            AttentionCall(
                q=_tokens(q, image, heads_first),
                k=_tokens(k, image, heads_first),
                v=_tokens(v, image, heads_first),
                attend=self._attend(func, heads, plain),
                block=layer[0],
                depth=layer[1],
                grid=self._grid,
                chunks=chunks_of(kwargs["transformer_options"]),
                frames=self._frames,
                joint=joint,
                heads=heads,
                sequence=sequence if joint is not None else None,
            )
        )
        return out if joint is None else joint.with_image(out)

    def _attention(self, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return func(*args, **kwargs) if self._previous is None else self._previous(func, *args, **kwargs)

    def _attend(self, func: Callable[..., Tensor], heads: int, kwargs: dict[str, Any]) -> Attend:
        return lambda q, k, v: self._attention(func, q, k, v, heads, **kwargs)

    def _layer(self, options: Options) -> Layer | None:
        """Block and number of a self-attention inside it; None for any other attention."""
        block: Block = (options.get("block_type", ""), options.get("block_index", -1))
        if block not in self._layers:
            return None
        self._latest = (block, self._latest[1] + 1 if block == self._latest[0] else 0)
        return self._latest if self._latest[1] < self._layers[block] else None

    def _image_tokens(self, q: Tensor, k: Tensor, kwargs: dict[str, Any]) -> slice:
        tokens = self._frames * math.prod(self._grid)
        after = self.padding + sum(kwargs["transformer_options"].get("reference_image_num_tokens", ()))
        first = _length(k, kwargs) - after - tokens
        if first < 0 or _length(q, kwargs) != _length(k, kwargs):
            raise RuntimeError(
                f"Attention cannot be read: the picture has {self._frames} x {self._grid[0]} x {self._grid[1]} tokens, "
                f"but an attention was given {_length(q, kwargs)} queries and {_length(k, kwargs)} keys. Remove what "
                "adds or takes away tokens: guide frames, token merging, another patch."
            )
        return slice(first, first + tokens)


class _Joint:
    """The attention of text and image tokens together, computed when first needed."""

    def __init__(self, attention: Callable[[], Tensor], image: slice) -> None:
        self._attention = attention
        self._image = image
        self._out: Tensor | None = None

    def __call__(self) -> Tensor:
        """The image tokens' part of the output."""
        return self._whole()[:, self._image]

    def _whole(self) -> Tensor:
        if self._out is None:
            self._out = self._attention()
        return self._out

    def with_image(self, image: Tensor) -> Tensor:
        """The whole output with (G * B, N, C) as its image tokens."""
        own = self()
        if image.data_ptr() != own.data_ptr():
            own.copy_(image)
        return self._whole()


def _length(t: Tensor, kwargs: Mapping[str, Any]) -> int:
    return t.shape[2 if kwargs.get("skip_reshape", False) else 1]


def _tokens(t: Tensor, tokens: slice, heads_first: bool) -> Tensor:
    """Some tokens of (B, heads, N, d), (B, N, heads, d) or (B, N, C) as (B, n, C)."""
    return (t[:, :, tokens].transpose(1, 2) if heads_first else t[:, tokens]).flatten(2)
