"""Where attention looks on a reference, Refine-by-Align (arXiv 2412.00306), the kernels.

Symbols: B samples; Q of N tokens on the grid of the picture, K of M reference tokens on a grid of their own; P groups
of query tokens, each of which gets one map over the reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels.attention import AttentionLayer, attention_map
from ..kernels.masks import covered_tokens

# Numbers of the attention map that exist at a time: 16 MiB, twice because of the softmax.
MOST = 1 << 22


def attention_to_reference(
    layer: AttentionLayer, groups: Tensor, tokens: Tensor | None = None, most: int = MOST
) -> Tensor:
    """Attention of groups of queries to all reference keys, the alignment of Refine-by-Align in one layer.

    Args:
        layer: queries and keys.
        groups: (P, N), the weight of each query in each group; queries without weight cost nothing.
        tokens: (n,), the queries that have a weight; None finds them, for which a device has to be waited for.
        most: of the (B, heads, N, M) map, so many numbers exist at a time, or one row if that is more.

    Returns:
        (P, M) float32, mean over samples and heads; a row sums to the sum of its group's weights.
    """
    groups = groups.to(layer.q.device, torch.float32)
    k, total = layer.k.float(), groups.new_zeros(len(groups), layer.k.shape[1])
    asking = weighted(groups) if tokens is None else tokens
    for some in asking.split(max(1, most // (k.shape[0] * layer.heads * k.shape[1]))):
        bias = layer.bias
        if bias is not None and bias.shape[-2] > 1:
            bias = bias[..., some, :]
        total += groups[:, some] @ attention_map(layer.q[:, some].float(), k, layer.heads, bias).mean(1).mean(0)
    return total


def weighted(groups: Tensor) -> Tensor:
    """(n,), the queries that have a weight in any group (P, N)."""
    return torch.nonzero(groups.any(0)).squeeze(1)


def score_bias(mask: Tensor | None, queries: slice) -> Tensor | None:
    """A mask as attention functions take it, as what it adds to the scores of some of the queries.

    Args:
        mask: (L, L), (B, 1 or L, L) or (B, 1 or heads, 1 or L, L); true, or a number to add, where a key may be seen.
        queries: which of the L tokens ask.

    Returns:
        (1 or B, 1 or heads, 1 or n, L) float32.
    """
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -torch.inf)
    batch = 1 if mask.ndim == 2 else len(mask)
    bias = mask.float().reshape(batch, -1, *mask.shape[-2:])
    return bias if bias.shape[-2] == 1 else bias[..., queries, :]


def group_of_mask(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """The tokens that a mask covers, as one group of equal weights.

    Args:
        mask: (H, W) in [0, 1], not all zero.
        grid: (h, w) of the query tokens.

    Returns:
        (1, h * w), sums to 1.
    """
    tokens = covered_tokens(mask, grid)
    group = torch.zeros(1, grid[0] * grid[1])
    group[0, tokens] = 1 / len(tokens)
    return group


def groups_of_points(points: Sequence[tuple[int, int]], size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The token under each point, as a group of its own.

    Args:
        points: (x, y) in pixels.
        size: (H, W) of the picture they lie on.
        grid: (h, w) of the query tokens.

    Returns:
        (points, h * w), one 1 in each row.
    """
    groups = torch.zeros(len(points), grid[0] * grid[1])
    for group, (x, y) in zip(groups, points, strict=True):
        group[y * grid[0] // size[0] * grid[1] + x * grid[1] // size[1]] = 1
    return groups


def mean_map(maps: Sequence[Tensor]) -> Tensor:
    """Mean of maps on different grids, interpolated to the finest of them.

    Args:
        maps: (P, h, w) each, at least one.
    """
    size = max((tuple(one.shape[-2:]) for one in maps), key=lambda grid: grid[0] * grid[1])
    fine = [F.interpolate(one.unsqueeze(0), size, mode="bilinear", align_corners=False)[0] for one in maps]
    return torch.stack(fine).mean(0)


def completion_loss(predicted: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
    """The denoising loss of an object that is completed where a mask is 1, the objective of both modes.

    Args:
        predicted, noise: (B, C, h, w).
        mask: (B, 1, h, w), 0 and 1, each with something in it.

    Returns:
        scalar, the mean over samples of the mean over the masked numbers of each.

    Note:
        The project page, all that was read, does not say where the loss is taken. Outside of the mask the sampler
        keeps the picture, so nothing is learnt for it.
    """
    error = (predicted - noise).square().mean(1, keepdim=True) * mask
    return (error.flatten(1).sum(1) / mask.flatten(1).sum(1)).mean()
