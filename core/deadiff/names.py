"""Names of DEADiff's weights: inside the pack's networks, and in the released checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..patches.blocks import Layer

WORDS = {"style": [101, 2806, 102], "content": [101, 4180, 102]}  # BERT's ids of [CLS] word [SEP]
SIDES = ("input", "middle", "output")

BRANCH_PARTS = {
    "vision_norm": "blip.ln_vision",
    "query_tokens": "blip.query_tokens",
    "instruction": "blip.instruction",  # our own: the checkpoint has embeddings of all words instead
    "embedding_norm": "blip.Qformer.bert.embeddings.LayerNorm",
    "projection.norm": "proj_layer.LayerNorm",
    "projection.up": "proj_layer.dense1",
    "projection.down": "proj_layer.dense2",
}
LAYER_PARTS = {
    "attention.dense": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "attention": "attention.self",
    "cross_attention.dense": "crossattention.output.dense",
    "cross_attention.norm": "crossattention.output.LayerNorm",
    "cross_attention": "crossattention.self",
    "query_feed.up": "intermediate_query.dense",
    "query_feed.down": "output_query.dense",
    "query_feed.norm": "output_query.LayerNorm",
    "word_feed.up": "intermediate.dense",
    "word_feed.down": "output.dense",
    "word_feed.norm": "output.LayerNorm",
}
ATTENTION = re.compile(
    r"model\.diffusion_model\.(?:(input|output)_blocks\.(\d+)|(middle)_block)\.\d+"
    r"\.transformer_blocks\.(\d+)\.attn2\.i_to_k\.weight"
)


def attention_layers(keys: Iterable[str]) -> list[tuple[Layer, str]]:
    """The cross-attentions that have image projections, in the order they run.

    Returns:
        for each its place, and the prefix of its names in the checkpoint.
    """
    layers = []
    for key in keys:
        if match := ATTENTION.fullmatch(key):
            side = match[1] or match[3]
            layers.append((((side, int(match[2] or 0)), int(match[4])), key.removesuffix("i_to_k.weight")))
    return sorted(layers, key=lambda layer: (SIDES.index(layer[0][0][0]), layer[0][0][1], layer[0][1]))


def official(name: str, attention: list[str]) -> str:
    """A parameter of `Readers` or `ImageAttentions` -> its name in the checkpoint.

    Args:
        name: for example "style.layers.0.attention.query.weight".
        attention: prefixes of the image attentions in the order they run.
    """
    part, rest = name.split(".", 1)
    if part == "attention":
        number, projection = rest.split(".", 1)
        return attention[int(number)] + projection
    if rest.startswith("layers."):
        _, number, inner = rest.split(".", 2)
        return f"{part}_blip.Qformer.bert.encoder.layer.{number}.{_replaced(inner, LAYER_PARTS)}"
    return f"{part}_{_replaced(rest, BRANCH_PARTS)}"


def _replaced(name: str, parts: dict[str, str]) -> str:
    ours = next(part for part in parts if name == part or name.startswith(f"{part}."))
    return parts[ours] + name[len(ours) :]
