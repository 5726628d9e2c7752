"""Random weights whose first self-attention compares content: keys are made like queries, sharply, place aside."""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from families import TinyFamily, random_model
from torch import Tensor

SHARPNESS = 40.0
# How families call the projections and the norms of queries and keys.
QUERIES = ((".to_q.", ".to_k."), (".to_query.", ".to_key."))
NORMS = (
    *(("query_norm", "key_norm"), ("norm_q", "norm_k"), ("q_norm", "k_norm"), ("ln_q", "ln_k")),
    ("q_rms_norm", "k_rms_norm"),
)
SHIFTS = ("_mod.", "odulation", "distilled_guidance_layer")
EMBEDDERS = ("pe_embedder", "rope_embedder", "rope_embedder_3d")
OF_TEXT = ("txt", "context_block")


def content_based(family: TinyFamily) -> ModelPatcher:
    """A model of a family of transformers.

    Keys share the weights of the queries. What rotary embedding turns quickly from token to token is left out of both,
    so that an equal patch is equal wherever it lies, and so are embeddings of places and blocks that run before.
    """
    patcher = random_model(family)
    model = patcher.model.diffusion_model
    weights: dict[str, Tensor] = model.state_dict()
    for name, weight in weights.items():
        if name == "pos_embed" or ("refiner" in name and "norm" not in name) or _adds_the_same_to_all(name):
            weight.zero_()
        elif name.endswith("qkv.weight") and not any(part in name for part in OF_TEXT):
            _tie(weight, model.get_submodule(name.rsplit(".", 2)[0]))
        elif (key := weights.get(_swapped(name, QUERIES))) is not None and key.shape[1] == weight.shape[1]:
            shared = len(weight) // len(key)  # so many heads of the queries have one of the keys
            size = next(len(each) for other, each in weights.items() if _swapped(other, NORMS)) if shared > 1 else 1
            weight.copy_(key.unflatten(0, (-1, size)).repeat_interleave(shared, 0).flatten(0, 1))
        elif (key := weights.get(_swapped(name, NORMS))) is not None:
            weight.copy_(_slow(model, len(weight)) * SHARPNESS**0.5)
            key.copy_(weight)
    return patcher


def _tie(weight: Tensor, attention: Any) -> None:
    """Makes the queries' part of a joint projection that of the keys; several query heads may share a key head."""
    heads = attention.n_local_heads if hasattr(attention, "n_local_heads") else attention.num_heads
    key_heads = getattr(attention, "n_local_kv_heads", heads)
    size = len(weight) // (heads + 2 * key_heads)
    keys = weight[heads * size : (heads + key_heads) * size]
    if not any("norm" in name or "ln_q" in name for name, _ in attention.named_parameters()):
        keys.mul_(SHARPNESS**0.5)
    weight[: heads * size].copy_(
        keys.unflatten(0, (key_heads, size)).repeat_interleave(heads // key_heads, 0).flatten(0, 1)
    )


def _adds_the_same_to_all(name: str) -> bool:
    """Whether a weight moves all tokens alike, which makes them alike: biases, and shifts by the timestep."""
    return name.endswith("bias") or any(part in name for part in SHIFTS)


def _swapped(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    """The name of the keys' weight for one of the queries'; empty for any other."""
    return next((name.replace(query, key) for query, key in pairs if query in name), "")


def _slow(model: Any, size: int) -> Tensor:
    """1 for the numbers of a head that rotary embedding turns by less than 0.03 radians per token."""
    embedder = next((getattr(model, name) for name in EMBEDDERS if hasattr(model, name)), None)
    if embedder is None:
        return torch.ones(size)
    theta = getattr(embedder, "theta", 10000.0)
    axes = getattr(embedder, "axes_dim", None) or embedder.axes_dims
    speeds = torch.cat([theta ** -(torch.arange(0, width, 2) / width) for width in axes]).repeat_interleave(2)
    repeats = size // len(speeds)  # a norm may be over all heads; one of another size is not of what is turned
    return (speeds < 0.03).float().repeat(repeats) if repeats else torch.ones(size)
