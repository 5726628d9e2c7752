"""Similarity to points, P3S-Diffusion (arXiv 2412.19533), section III-A."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def similarity(features: Tensor, patches: Sequence[tuple[int, int]]) -> Tensor:
    """Cosine similarity of every patch to the patches of the points, eq. 1; of several points the maximum.

    Args:
        features: (h, w, C).
        patches: (row, column) of each point's patch, at least one.

    Returns:
        (h, w) float32 in [-1, 1].
    """
    directions = F.normalize(features.float(), dim=-1)
    rows, columns = zip(*patches, strict=True)
    return (directions @ directions[list(rows), list(columns)].T).amax(dim=-1)


def contrast(wanted: Tensor, unwanted: Tensor | None) -> Tensor:
    """M_P (1 - M_N), the inner part of eq. 2; without unwanted points M_N is 0.

    Args:
        wanted, unwanted: (h, w).

    Returns:
        (h, w).
    """
    return wanted if unwanted is None else wanted * (1 - unwanted)


def distance(points: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    """How far each pixel is from the nearest point, in pixels.

    Args:
        points: (x, y) of each point; without any, all is infinitely far.
        size: (H, W).

    Returns:
        (H, W) float32.
    """
    nearest = torch.full(size, torch.inf)
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])
    for x, y in points:
        # One point at a time: all at once would take points x pixels of memory.
        nearest = torch.minimum(nearest, torch.hypot((columns - x).float(), (rows - y).float()))
    return nearest
