"""Masks on token grids."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def to_grid(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resamples masks of any size by area, so that a token's value is the share of it that is covered.

    Args:
        mask: (B, H, W) in [0, 1].
        grid: (h, w), tokens down and across.

    Returns:
        (B, h, w).
    """
    return F.adaptive_avg_pool2d(mask.unsqueeze(1), grid).squeeze(1)


def token_weights(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """A region mask as one weight per query token.

    Args:
        mask: (B, H, W) in [0, 1].
        grid: (h, w), tokens down and across.

    Returns:
        (B, h * w, 1), broadcastable against (B, N, C).
    """
    return to_grid(mask, grid).flatten(1).unsqueeze(-1)


def covered_tokens(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which tokens of a reference a mask selects.

    A token counts when at least half of it is covered. A subject too thin for a coarse grid would lose all its
    tokens that way, so there the best covered tokens stand in: a mask that is not empty never selects nothing.

    Args:
        mask: (H, W) in [0, 1], not all zero.
        grid: (h, w), tokens down and across.

    Returns:
        (n,) int64 indices into the h * w tokens, ascending, n >= 1.
    """
    coverage = to_grid(mask.unsqueeze(0), grid).flatten()
    return torch.nonzero(coverage >= coverage.max().clamp(max=0.5)).squeeze(1)
