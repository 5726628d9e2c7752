"""Names and shapes of the tensors in a single-file checkpoint of the SD line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .families import TextEncoderSize, UNetSize

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Part:
    """One module of a U-Net block: "conv", "res", "attention", "down" or "up"."""

    name: str
    kind: str
    channels_in: int
    channels_out: int
    level: int
    depth: int = 0


def unet_parts(size: UNetSize) -> list[Part]:
    """The modules of a U-Net in the order they run, without the time embedding and the output layers."""
    widths = [size.model_channels * mult for mult in size.channel_mult]
    encoder = list(_encoder(size, widths))
    deepest = len(widths) - 1
    depth = next(depth for depth in reversed(size.transformer_depth) if depth)
    res = Part("middle_block.0.", "res", widths[-1], widths[-1], deepest)
    middle = [
        res,
        replace(res, name="middle_block.1.", kind="attention", depth=depth),
        replace(res, name="middle_block.2."),
    ]
    skips = [part.channels_out for part in encoder if part.kind != "attention"]
    return [*encoder, *middle, *_decoder(size, widths, skips)]


def _encoder(size: UNetSize, widths: list[int]) -> Iterator[Part]:
    yield Part("input_blocks.0.0.", "conv", size.in_channels, widths[0], 0)
    channels, index = widths[0], 1
    for level, width in enumerate(widths):
        for _ in range(size.num_res_blocks):
            yield from _block(f"input_blocks.{index}.", channels, width, level, size.transformer_depth[level])
            channels, index = width, index + 1
        if level < len(widths) - 1:
            yield Part(f"input_blocks.{index}.0.", "down", width, width, level)
            index += 1


def _decoder(size: UNetSize, widths: list[int], skips: list[int]) -> Iterator[Part]:
    channels, index = widths[-1], 0
    for level, width in reversed(list(enumerate(widths))):
        depth = size.transformer_depth[level]
        for block in range(size.num_res_blocks + 1):
            prefix = f"output_blocks.{index}."
            yield from _block(prefix, channels + skips.pop(), width, level, depth)
            if level and block == size.num_res_blocks:
                yield Part(f"{prefix}{2 if depth else 1}.", "up", width, width, level)
            channels, index = width, index + 1


def _block(prefix: str, channels_in: int, width: int, level: int, depth: int) -> Iterator[Part]:
    yield Part(f"{prefix}0.", "res", channels_in, width, level)
    if depth:
        yield Part(f"{prefix}1.", "attention", width, width, level, depth)


def unet_shapes(size: UNetSize) -> Shapes:
    """Shapes of all tensors of a U-Net, without the prefix that checkpoints give them."""
    width, embedding = size.model_channels, 4 * size.model_channels
    shapes = {**_linear("time_embed.0.", width, embedding), **_linear("time_embed.2.", embedding, embedding)}
    if size.adm_in_channels is not None:
        shapes |= _linear("label_emb.0.0.", size.adm_in_channels, embedding)
        shapes |= _linear("label_emb.0.2.", embedding, embedding)
    for part in unet_parts(size):
        shapes |= _part_shapes(part, size, embedding)
    return shapes | _norm("out.0.", width) | _conv("out.2.", width, size.out_channels)


def _part_shapes(part: Part, size: UNetSize, embedding: int) -> Shapes:
    name, before, after = part.name, part.channels_in, part.channels_out
    if part.kind == "conv":
        return _conv(name, before, after)
    if part.kind == "down":
        return _conv(f"{name}op.", before, after)
    if part.kind == "up":
        return _conv(f"{name}conv.", before, after)
    if part.kind == "attention":
        return _attention_shapes(part, size)
    skip = {} if before == after else _conv(f"{name}skip_connection.", before, after, 1)
    return {
        **_norm(f"{name}in_layers.0.", before),
        **_conv(f"{name}in_layers.2.", before, after),
        **_linear(f"{name}emb_layers.1.", embedding, after),
        **_norm(f"{name}out_layers.0.", after),
        **_conv(f"{name}out_layers.3.", after, after),
        **skip,
    }


def _attention_shapes(part: Part, size: UNetSize) -> Shapes:
    width = part.channels_out
    kernel = None if size.use_linear_in_transformer else 1
    shapes = _norm(f"{part.name}norm.", width)
    for projection in ("proj_in", "proj_out"):
        shapes |= _conv(f"{part.name}{projection}.", width, width, kernel)
    for index in range(part.depth):
        block = f"{part.name}transformer_blocks.{index}."
        for attention, context in (("attn1", width), ("attn2", size.context_dim)):
            shapes |= _linear(f"{block}{attention}.to_q.", width, width, bias=False)
            shapes |= _linear(f"{block}{attention}.to_k.", context, width, bias=False)
            shapes |= _linear(f"{block}{attention}.to_v.", context, width, bias=False)
            shapes |= _linear(f"{block}{attention}.to_out.0.", width, width)
        shapes |= _linear(f"{block}ff.net.0.proj.", width, 8 * width) | _linear(f"{block}ff.net.2.", 4 * width, width)
        for norm in ("norm1", "norm2", "norm3"):
            shapes |= _norm(f"{block}{norm}.", width)
    return shapes


def text_encoder_shapes(size: TextEncoderSize) -> Shapes:
    """Shapes of all tensors of a CLIP text tower in the layout it has inside a checkpoint."""
    return _open_clip_shapes(size) if size.open_clip else _clip_shapes(size)


def _clip_shapes(size: TextEncoderSize) -> Shapes:
    model, hidden = f"{size.prefix}text_model.", size.hidden
    shapes: Shapes = {
        f"{model}embeddings.position_ids": (1, size.positions),
        f"{model}embeddings.token_embedding.weight": (size.vocabulary, hidden),
        f"{model}embeddings.position_embedding.weight": (size.positions, hidden),
    }
    for index in range(size.layers):
        layer = f"{model}encoder.layers.{index}."
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}self_attn.{projection}.", hidden, hidden)
        shapes |= _norm(f"{layer}layer_norm1.", hidden) | _norm(f"{layer}layer_norm2.", hidden)
        shapes |= _linear(f"{layer}mlp.fc1.", hidden, size.intermediate)
        shapes |= _linear(f"{layer}mlp.fc2.", size.intermediate, hidden)
    return shapes | _norm(f"{model}final_layer_norm.", hidden)


def _open_clip_shapes(size: TextEncoderSize) -> Shapes:
    model, hidden = size.prefix, size.hidden
    shapes: Shapes = {
        f"{model}logit_scale": (),
        f"{model}text_projection": (hidden, hidden),
        f"{model}token_embedding.weight": (size.vocabulary, hidden),
        f"{model}positional_embedding": (size.positions, hidden),
    }
    for index in range(size.layers):
        layer = f"{model}transformer.resblocks.{index}."
        shapes |= {
            f"{layer}attn.in_proj_weight": (3 * hidden, hidden),
            f"{layer}attn.in_proj_bias": (3 * hidden,),
        }
        shapes |= _linear(f"{layer}attn.out_proj.", hidden, hidden)
        shapes |= _norm(f"{layer}ln_1.", hidden) | _norm(f"{layer}ln_2.", hidden)
        shapes |= _linear(f"{layer}mlp.c_fc.", hidden, size.intermediate)
        shapes |= _linear(f"{layer}mlp.c_proj.", size.intermediate, hidden)
    return shapes | _norm(f"{model}ln_final.", hidden)


def _linear(name: str, before: int, after: int, bias: bool = True) -> Shapes:
    weight: Shapes = {f"{name}weight": (after, before)}
    return weight | {f"{name}bias": (after,)} if bias else weight


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}weight": (width,), f"{name}bias": (width,)}


def _conv(name: str, before: int, after: int, kernel: int | None = 3) -> Shapes:
    """A convolution, or a linear layer where there is no kernel."""
    if kernel is None:
        return _linear(name, before, after)
    return {f"{name}weight": (after, before, kernel, kernel), f"{name}bias": (after,)}
