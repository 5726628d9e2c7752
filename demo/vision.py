"""A vision encoder in the form of CLIP ViT-L/14 that compares the colours of patches.

Its size is the real one, because the host knows encoders by their size; its weights are constructed. The patch
embedding averages each patch's colour. The first block's feed-forward layer measures that colour along many
directions and spreads each measure over a row of overlapping bumps, so that patches have similar features just when
their colours are close. All else is zero, and the other blocks pass on what they get.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

FILE_NAME = "clip-vit-large-patch14.safetensors"
SHORT_LOADER = "RefAttentionDemoCLIPVisionLoader"  # a node, see short_vision.py
WIDTH, HIDDEN, LAYERS, PATCH, PATCHES = 1024, 4096, 24, 14, 256
COLOURS = slice(0, 3)
# A constant that makes layer norms linear in the much smaller colours, and its opposite, which keeps their mean 0.
ONE, MINUS_ONE = 3, 4
ONE_SIZE = 20.0
FIRST_BUMP = 8

DIRECTIONS = 48
BUMPS = 20
# How much of a difference in brightness counts, so that a subject holds together in light and shade.
BRIGHTNESS = 0.5
# Normalised colours reach from -2 to 2.
REACH = 2.6
# quick_gelu(x) is close to relu(x) for large x.
SHARPNESS = 40.0
BUMP_SIZE = 40.0


def state_dict(seed: int = 0) -> dict[str, Tensor]:
    """All tensors, half precision, with the names of CLIP ViT-L/14's vision half in transformers."""
    weights = zeros()
    weights["vision_model.embeddings.patch_embedding.weight"] = _average_colour()
    weights["vision_model.embeddings.position_embedding.weight"][:] = _constant()
    for name, tensor in weights.items():
        if name.endswith(("layrnorm.weight", "layer_norm1.weight", "layer_norm2.weight")):
            tensor[:] = _norm_gain()
    weights["vision_model.post_layernorm.weight"][:] = 1
    _fill_bumps(weights, "vision_model.encoder.layers.0.mlp.", seed)
    return weights


def zeros() -> dict[str, Tensor]:
    """The same tensors when all of them are zero."""
    vision = "vision_model."
    weights = {
        f"{vision}embeddings.class_embedding": _zeros(WIDTH),
        f"{vision}embeddings.patch_embedding.weight": _zeros(WIDTH, 3, PATCH, PATCH),
        f"{vision}embeddings.position_embedding.weight": _zeros(PATCHES + 1, WIDTH),
        "visual_projection.weight": _zeros(768, WIDTH),
    }
    norms = [f"{vision}pre_layrnorm", f"{vision}post_layernorm"]
    for layer in range(LAYERS):
        block = f"{vision}encoder.layers.{layer}."
        norms += [f"{block}layer_norm1", f"{block}layer_norm2"]
        for name in ("q", "k", "v", "out"):
            weights[f"{block}self_attn.{name}_proj.weight"] = _zeros(WIDTH, WIDTH)
            weights[f"{block}self_attn.{name}_proj.bias"] = _zeros(WIDTH)
        weights |= {f"{block}mlp.fc1.weight": _zeros(HIDDEN, WIDTH), f"{block}mlp.fc1.bias": _zeros(HIDDEN)}
        weights |= {f"{block}mlp.fc2.weight": _zeros(WIDTH, HIDDEN), f"{block}mlp.fc2.bias": _zeros(WIDTH)}
    return weights | {f"{norm}.{kind}": _zeros(WIDTH) for norm in norms for kind in ("weight", "bias")}


def _zeros(*size: int) -> Tensor:
    return torch.zeros(*size, dtype=torch.float16)


def _average_colour() -> Tensor:
    weight = _zeros(WIDTH, 3, PATCH, PATCH)
    weight[COLOURS] = (torch.eye(3) - (1 - BRIGHTNESS) / 3)[:, :, None, None] / PATCH**2
    return weight


def _constant() -> Tensor:
    one = _zeros(WIDTH)
    one[ONE], one[MINUS_ONE] = ONE_SIZE, -ONE_SIZE
    return one


def _norm_gain() -> Tensor:
    """What undoes a layer norm whose input is the constant and little else."""
    return _zeros(WIDTH) + ONE_SIZE * (2 / WIDTH) ** 0.5


def _fill_bumps(weights: dict[str, Tensor], mlp: str, seed: int) -> None:
    """Feed-forward weights: along each direction, ramps at evenly spaced colours, joined into bumps two steps wide."""
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(DIRECTIONS, 3, generator=generator), dim=-1)
    step = 2 * REACH / (BUMPS - 1)
    ramps = BUMPS + 2
    first, bias, second = (weights[f"{mlp}{name}"] for name in ("fc1.weight", "fc1.bias", "fc2.weight"))
    for direction in range(DIRECTIONS):
        rows = slice(direction * ramps, (direction + 1) * ramps)
        first[rows, COLOURS] = SHARPNESS * directions[direction]
        bias[rows] = -SHARPNESS * torch.linspace(-REACH - step, REACH + step, ramps)
        for bump in range(BUMPS):
            row, column = FIRST_BUMP + direction * BUMPS + bump, direction * ramps + bump
            second[row, column : column + 3] = torch.tensor([1.0, -2.0, 1.0]) * BUMP_SIZE / (SHARPNESS * step)
