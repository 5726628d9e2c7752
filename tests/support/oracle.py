"""Naive float64 attention to compare the kernels with: explicit loops over samples and heads, nothing clever."""

from __future__ import annotations

import torch
from torch import Tensor


def scores(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """`Q Kᵀ / sqrt(d)` for (N, C) and (M, C): (heads, N, M)."""
    size = q.shape[-1] // heads
    q, k = q.double(), k.double()
    return torch.stack(
        [q[:, h * size : (h + 1) * size] @ k[:, h * size : (h + 1) * size].T / size**0.5 for h in range(heads)]
    )


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """`softmax(Q Kᵀ / sqrt(d)) V` for (N, C), (M, C), (M, C): (N, C) in float64."""
    size = q.shape[-1] // heads
    weights = scores(q, k, heads).exp()
    weights = weights / weights.sum(-1, keepdim=True)
    return torch.cat([weights[h] @ v[:, h * size : (h + 1) * size].double() for h in range(heads)], dim=-1)


def batched(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """`attention` for each sample of (B, N, C)."""
    return torch.stack([attention(*sample, heads) for sample in zip(q, k, v, strict=True)])


def rfg(
    q: Tensor, k: Tensor, v: Tensor, references: list[tuple[Tensor, Tensor]], weights: list[Tensor], heads: int
) -> Tensor:
    """RefDrop for one sample: (N, C) q, k, v; references of (M, C); weights of (N, 1)."""
    own = attention(q, k, v, heads)
    total = sum(weight.double() for weight in weights)
    guided = sum(
        weight.double() * attention(q, *reference, heads) for weight, reference in zip(weights, references, strict=True)
    )
    return guided + (1 - total) * own
