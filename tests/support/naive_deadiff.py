"""DEADiff's attention written a second time, in the plainest way: chunk by chunk, float64, nothing kept.

It sits in `attn2_replace`, gets the text as the host pads it, and is told the true lengths.
"""

from __future__ import annotations

from typing import Any

import oracle
import torch
from naive import labelled_layers
from refattention.core.deadiff.settings import DEADiffSettings
from torch import Tensor

Image = dict[Any, tuple[Tensor, Tensor]]


def random_image(patcher: Any, tokens: int = 16, samples: int = 1, seed: int = 3) -> Image:
    """Keys and values for every cross-attention of a model."""
    generator = torch.Generator().manual_seed(seed)
    image: Image = {}
    for block, layer in labelled_layers(patcher):
        depth = sum(known == block for known, _ in image)
        width = layer.attn2.heads * layer.attn2.dim_head
        image[block, depth] = tuple(torch.randn(samples, tokens, width, generator=generator) for _ in range(2))
    return image


def attach(
    patcher: Any, style: DEADiffSettings, lengths: dict[int, int] | None = None, below: DEADiffSettings | None = None
) -> Any:
    """Makes a model attend as DEADiff does.

    Args:
        lengths: of the texts of each conditioning (0: positive, 1: negative) where the host pads them.
        below: another style for the lower half of the picture.
    """

    def of_row(row: int, style: DEADiffSettings, qkv: tuple[Tensor, ...], options: dict[str, Any]) -> Tensor:
        q, k, v = qkv
        chunks = options["cond_or_uncond"]
        image = style.image.get((options["block"], options["block_index"]))
        sample = row % (len(q) // len(chunks))
        half = chunks[row // (len(q) // len(chunks))]
        length = (lengths or {}).get(half, k.shape[1])
        keys, values = k[row, :length], v[row, :length]
        if image is not None and (half == 0 or style.zero_tokens):
            weight = style.strength if half == 0 else 0.0
            own_keys, own_values = (t[sample if len(t) > 1 else 0].to(k) for t in image)
            keys, values = torch.cat([keys, weight * own_keys]), torch.cat([values, weight * own_values])
        return oracle.attention(q[row], keys, values, options["n_heads"])

    def replace(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        out = torch.stack([of_row(row, style, (q, k, v), options) for row in range(len(q))])
        if below is not None:
            tokens = q.shape[1] // 2
            lower = torch.stack([of_row(row, below, (q, k, v), options) for row in range(len(q))])
            out[:, tokens:] = lower[:, tokens:]
        return out.to(q.dtype)

    patched = patcher.clone()
    for block, _ in labelled_layers(patcher):
        patched.set_model_attn2_replace(replace, *block)
    return patched
