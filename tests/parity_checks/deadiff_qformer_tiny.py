"""DEADiff's Q-Formers: recorded image features to tokens, against the official classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import deadiff_support as deadiff
import torch
from torch import Tensor

if TYPE_CHECKING:
    from parity import Golden

TOLERANCE = 1e-5


def outputs(golden: Golden) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """Yields (name, ours, recorded, tolerance) for the tokens and for what leads to them."""
    t = golden.tensors
    readers = deadiff.readers(t, golden.info["config"])
    for branch in ("style", "content"):
        reader = getattr(readers.model, branch)
        seen = _watch(reader)
        with torch.inference_mode():
            tokens = reader(t["in.vit_features"].to(readers.load_device, torch.float32))
        for name, got in {**seen, "tokens": tokens}.items():
            want = t[f"{branch}.{name}"]
            # The last layer does not compute the word's half, which nothing reads.
            yield f"{branch}.{name}", got.cpu(), want[:, : got.shape[1]], TOLERANCE


def _watch(reader: torch.nn.Module) -> dict[str, Tensor]:
    """Outputs of a branch's layers under their recorded names, in the order they appear."""
    seen: dict[str, Tensor] = {}

    def remember(name: str) -> Any:
        return lambda module, inputs, output: seen.__setitem__(name, output)

    reader.vision_norm.register_forward_hook(remember("ln_vision"))
    reader.embedding_norm.register_forward_hook(
        lambda module, inputs, output: seen.__setitem__("embeddings", output.expand(len(seen["ln_vision"]), -1, -1))
    )
    for number, layer in enumerate(reader.layers):
        layer.attention.register_forward_hook(remember(f"layer{number}.selfattn"))
        layer.cross_attention.register_forward_hook(remember(f"layer{number}.crossattn"))
        layer.register_forward_hook(remember(f"layer{number}"))
    return seen
