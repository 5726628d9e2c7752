"""Learning flow fields in attention, Leffa (arXiv 2412.08486), the kernels.

Symbols: B samples; Q of N generative tokens on an (h, w) grid, K of M reference tokens on a grid of their own.
Coordinates are (x, y) with the middles of the corner tokens, or corner pixels, at -1 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..kernels.attention import AttentionLayer, coordinates

TEMPERATURE = 2.0  # tau
WEIGHT = 1e-3  # lambda
MIN_RATIO = 1 / 32  # of a layer's grid to the image
MAX_TIMESTEP = 500  # of 1000
MOST = 1 << 24  # numbers of the attention map that exist at a time: 64 MiB, and as many again for each step to it


def attention_flow(layer: AttentionLayer, temperature: float = TEMPERATURE, most: int = MOST) -> Tensor:
    """Where each generative token looks on the reference: F = A C, A = mean of heads of softmax(Q K^T / sqrt(d) / tau).

    Heads and tokens are averaged in one go, because A enters linearly.

    Args:
        most: of the (B, heads, N, M) map, so many numbers exist at a time, or those of one query if that is more;
            forwards and backwards.

    Returns:
        (B, N, 2) coordinates on the reference.
    """
    where = coordinates(layer.reference_grid, layer.k)
    q, k = (t.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for t in (layer.q, layer.k))
    scale = 1 / (math.sqrt(q.shape[-1]) * temperature)

    def part(queries: Tensor, keys: Tensor) -> Tensor:
        return ((queries @ keys.transpose(-1, -2) * scale).softmax(-1) @ where).mean(1)

    step = max(1, most // (k.shape[0] * k.shape[1] * k.shape[2]))
    parts = [checkpoint(part, chunk, k, use_reentrant=False) for chunk in q.split(step, dim=2)]
    return torch.cat(parts, dim=1)


def joined_in_space(q: Tensor, k: Tensor, heads: int, grid: tuple[int, int]) -> AttentionLayer:
    """A self-attention of a model that reads picture and reference as one, the reference below the picture.

    So do models such as CatVTON; the loss is the same for them, because it asks for queries and reference keys alone.

    Args:
        q, k: (B, 2 h * w, C), projected, of all tokens.
        heads: how many heads C holds.
        grid: (h, w) of the picture's half.
    """
    tokens = grid[0] * grid[1]
    return AttentionLayer(q[:, :tokens], k[:, tokens:], heads, grid, grid)


def warp(reference: Tensor, flow: Tensor, size: tuple[int, int]) -> Tensor:
    """The reference picture as a flow field moves it.

    Args:
        reference: (B, C, H, W).
        flow: (B, h, w, 2), where each token comes from.
        size: (H', W') of the result; the flow is interpolated bilinearly to it.

    Returns:
        (B, C, H', W').
    """
    fine = F.interpolate(flow.movedim(-1, 1), size, mode="bilinear", align_corners=True).movedim(1, -1)
    return F.grid_sample(reference, fine, mode="bilinear", padding_mode="border", align_corners=True)


def flow_errors(
    layers: Sequence[AttentionLayer],
    reference: Tensor,
    target: Tensor,
    mask: Tensor,
    temperature: float = TEMPERATURE,
    min_ratio: float = MIN_RATIO,
) -> Tensor:
    """How far the reference, warped by what the layers attend to, is from the target, sample by sample.

    Args:
        layers, reference, target, mask, temperature: as of `leffa_loss`.
        min_ratio: layers with a grid below this part of the picture's height do not count.

    Returns:
        (B,), sum over the layers of the mean over the masked pixels of |warp(I_ref, F) - I|^2.
    """
    total = target.new_zeros(len(target))
    area = (mask.sum((1, 2, 3)) * target.shape[1]).clamp(min=1)
    for layer in layers:
        if layer.grid[0] / target.shape[-2] >= min_ratio:
            flow = attention_flow(layer, temperature).unflatten(1, layer.grid)
            error = (warp(reference, flow, (target.shape[-2], target.shape[-1])) - target) ** 2 * mask
            total = total + error.sum((1, 2, 3)) / area
    return total


def leffa_loss(
    layers: Sequence[AttentionLayer],
    reference: Tensor,
    target: Tensor,
    mask: Tensor,
    timesteps: Tensor,
    temperature: float = TEMPERATURE,
    weight: float = WEIGHT,
) -> Tensor:
    """Leffa's regularisation: the reference, warped by what each layer attends to, should be the target.

        loss = weight * sum over layers of the mean over the masked pixels of |warp(I_ref, F) - I|^2

    Args:
        layers: any; those with a grid below 1/32 of the picture's height do not count.
        reference: (B, C, H_ref, W_ref).
        target: (B, C, H, W).
        mask: (B, 1, H, W), 1 where the reference shows in the target.
        timesteps: (B,); samples from 500 on do not count.
        temperature: tau.
        weight: lambda.

    Returns:
        a single number: the mean over the samples that count, 0 if there is none.

    Note:
        How the paper treats borders and normalises pixels was not read. Here corners meet corners, coordinates
        beyond the border take the border's pixel, and each layer's error is a mean, so that the loss does not depend
        on the size of mask and picture. With a sum over pixels in its place, `weight` would be larger by their number.
    """
    counts = timesteps < MAX_TIMESTEP
    if not counts.any():
        return target.new_zeros(())
    return weight * flow_errors(layers, reference, target, mask, temperature)[counts].mean()


def colour_wheel(displacement: Tensor) -> Tensor:
    """Displacements as colours: the direction is the hue, the length, relative to the longest, the saturation.

    Args:
        displacement: (B, h, w, 2).

    Returns:
        (B, h, w, 3) in [0, 1]; no displacement is white.
    """
    length = displacement.norm(dim=-1)
    saturation = length / length.flatten(1).amax(1).clamp(min=1e-6)[:, None, None]
    hue = torch.atan2(displacement[..., 1], displacement[..., 0]) / (2 * math.pi)
    # Each channel falls off with the distance, around the wheel, from the angle where it is full.
    full = torch.tensor([0.0, 1 / 3, 2 / 3], dtype=hue.dtype, device=hue.device)
    distance = (hue.unsqueeze(-1) - full + 0.5).remainder(1) - 0.5
    pure = (2 - 6 * distance.abs()).clamp(0, 1)
    return 1 - saturation.unsqueeze(-1) * (1 - pure)


def rescale_guidance(guided: Tensor, conditional: Tensor, phi: float) -> Tensor:
    """Pulls the spread of a guided prediction towards that of the conditional one (arXiv 2305.08891, Eq. 14 to 16).

        result = (phi * std(conditional) / std(guided) + 1 - phi) * guided

    Args:
        guided, conditional: (B, ...), predicted noise; any common factor cancels.
        phi: 1 gives the conditional spread; Leffa uses its guidance scale, so it extrapolates.

    Returns:
        the shape of `guided`.
    """
    axes = tuple(range(1, guided.ndim))
    ratio = conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return guided * (phi * ratio + 1 - phi)
