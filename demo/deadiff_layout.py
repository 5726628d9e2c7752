"""Names and shapes of the tensors that DEADiff adds to an SD1.5 checkpoint, as in its released file."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .families import SD15, UNetSize
from .layout import Shapes, unet_parts

BRANCHES = ("style", "content")


@dataclass(frozen=True)
class DEADiffSize:
    """Sizes of DEADiff's networks; heads are 64 channels wide."""

    unet: UNetSize
    hidden: int = 768
    layers: int = 12
    feed_forward: int = 3072
    vision: int = 1024
    vision_layers: int = 23
    queries: int = 16
    vocabulary: int = 30523


REAL_UNET = UNetSize(320, (1, 2, 4, 4), (1, 1, 1, 0), 768, False, num_heads=8)
FULL_SIZE = DEADiffSize(REAL_UNET)
DEMO_SIZE = DEADiffSize(SD15.unet, hidden=SD15.unet.context_dim, layers=1, feed_forward=64, vision=64, vision_layers=1)


def shapes(size: DEADiffSize) -> Shapes:
    """Shapes of all tensors that DEADiff needs, under their names in the released checkpoint."""
    found: Shapes = {}
    for branch in BRANCHES:
        found |= _vision(f"{branch}_blip.visual_encoder.", size)
        found |= _norm(f"{branch}_blip.ln_vision", size.vision)
        found |= _qformer(f"{branch}_blip.Qformer.bert.", size)
        found[f"{branch}_blip.query_tokens"] = (1, size.queries, size.hidden)
        found |= _norm(f"{branch}_proj_layer.LayerNorm", size.hidden)
        found |= _linear(f"{branch}_proj_layer.dense1", size.hidden, 4 * size.hidden)
        found |= _linear(f"{branch}_proj_layer.dense2", 4 * size.hidden, size.hidden)
    for part in unet_parts(size.unet):
        for depth in range(part.depth):
            for kind in "kv":
                name = f"model.diffusion_model.{part.name}transformer_blocks.{depth}.attn2.i_to_{kind}.weight"
                found[name] = (part.channels_out, size.hidden)
    return found


def random_weights(size: DEADiffSize, seed: int = 0) -> dict[str, Tensor]:
    """Seeded noise of the usual scale, float32."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes(size).items():
        if len(shape) == 1 and "class_embedding" not in name:
            weights[name] = torch.full(shape, 0.0 if name.endswith("bias") else 1.0)
        else:
            scale = 1.0 if "embedding" in name or "query_tokens" in name else math.prod(shape[1:]) ** -0.5
            weights[name] = torch.randn(shape, generator=generator) * scale
    # The released visual encoders are copies of one file.
    for name in weights:
        if name.startswith("content_blip.visual_encoder."):
            weights[name] = weights[name.replace("content", "style", 1)]
    return weights


def _vision(prefix: str, size: DEADiffSize, patch: int = 14, positions: int = 257) -> Shapes:
    width = size.vision
    found: Shapes = {
        f"{prefix}class_embedding": (width,),
        f"{prefix}positional_embedding": (positions, width),
        f"{prefix}conv1.weight": (width, 3, patch, patch),
        **_norm(f"{prefix}ln_pre", width),
    }
    for number in range(size.vision_layers):
        block = f"{prefix}transformer.resblocks.{number}."
        found |= {f"{block}attn.in_proj_weight": (3 * width, width), f"{block}attn.in_proj_bias": (3 * width,)}
        found |= _linear(f"{block}attn.out_proj", width, width)
        found |= _norm(f"{block}ln_1", width) | _norm(f"{block}ln_2", width)
        found |= _linear(f"{block}mlp.c_fc", width, 4 * width) | _linear(f"{block}mlp.c_proj", 4 * width, width)
    return found


def _qformer(prefix: str, size: DEADiffSize) -> Shapes:
    hidden, inner = size.hidden, size.feed_forward
    found: Shapes = {
        f"{prefix}embeddings.word_embeddings.weight": (size.vocabulary, hidden),
        f"{prefix}embeddings.position_embeddings.weight": (512, hidden),
        **_norm(f"{prefix}embeddings.LayerNorm", hidden),
    }
    for number in range(size.layers):
        layer = f"{prefix}encoder.layer.{number}."
        for attention, source in (("attention", hidden), ("crossattention", size.vision)):
            found |= _linear(f"{layer}{attention}.self.query", hidden, hidden)
            found |= _linear(f"{layer}{attention}.self.key", source, hidden)
            found |= _linear(f"{layer}{attention}.self.value", source, hidden)
            found |= _linear(f"{layer}{attention}.output.dense", hidden, hidden)
            found |= _norm(f"{layer}{attention}.output.LayerNorm", hidden)
        for kind in ("", "_query"):
            found |= _linear(f"{layer}intermediate{kind}.dense", hidden, inner)
            found |= _linear(f"{layer}output{kind}.dense", inner, hidden)
            found |= _norm(f"{layer}output{kind}.LayerNorm", hidden)
    return found


def _linear(name: str, before: int, after: int) -> Shapes:
    return {f"{name}.weight": (after, before), f"{name}.bias": (after,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
