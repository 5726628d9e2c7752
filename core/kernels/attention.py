"""Attention as several methods compute with it.

Symbols: B samples; Q of N query tokens on an (h, w) grid, K of M reference tokens on a grid of their own; C is heads
times the head size. Coordinates are (x, y) with the middles of the corner tokens, or corner pixels, at -1 and 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """Queries and reference keys of one self-attention.

    Attributes:
        q: (B, N, C), projected, heads not split.
        k: (B, M, C), of the reference alone.
        heads: how many heads C holds.
        grid: (h, w) with h * w = N.
        reference_grid: the same for M.
        bias: (1 or B, 1 or heads, 1 or N, M), added to the scores; None is none.
    """

    q: Tensor
    k: Tensor
    heads: int
    grid: tuple[int, int]
    reference_grid: tuple[int, int]
    bias: Tensor | None = None


def coordinates(grid: tuple[int, int], like: Tensor) -> Tensor:
    """(h * w, 2) coordinates of the tokens of a grid, in the dtype and on the device of `like`."""
    y, x = (
        torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device) if n > 1 else like.new_zeros(1) for n in grid
    )
    return torch.stack([x.expand(grid), y.unsqueeze(1).expand(grid)], dim=-1).flatten(0, 1)


def attention_map(q: Tensor, k: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """`Softmax(Q K^T / sqrt(d) + bias)`, P3S-Diffusion, Eq. 13.

    Args:
        q: (B, N, heads * d).
        k: (B, L, heads * d).
        bias: broadcast over (B, heads, N, L); None is none.

    Returns:
        (B, heads, N, L), rows sum to 1.
    """
    q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores if bias is None else scores + bias).softmax(-1)
