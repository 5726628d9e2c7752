"""P3S-Diffusion (arXiv 2412.19533), the kernels: encoder, injection, schedule, attention consistency.

Symbols: B samples, z (B, N, C) the hidden states that enter a self-attention of the frozen U-Net, f (B, M, C) those of
its trainable copy, epsilon_t the weight of the injection at timestep t, lambda its weight in the values.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels.attention import Attend

PAPER, FIXED, INCREASING, DECREASING, OFF = "paper", "fixed", "increasing", "decreasing", "off"
SCHEDULES = [PAPER, FIXED, INCREASING, DECREASING, OFF]
MEAN, SUM = "mean", "sum"
AVERAGES = [MEAN, SUM]


def biased_latent(attend: Attend, latent: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`I'' = I' + Softmax(Q K^T / sqrt(d)) V`, the RNGR encoder of P3S-Diffusion, Eq. 4.

    Args:
        attend: computes the attention for (B, tokens, d) tensors, in one head.
        latent: I', (B, c, h, w), the cleaned reference.
        q: (B, h * w, d), from I'.
        k: (B, L, d), from the vision encoder's tokens.
        v: (B, L, c) with c <= d, from the same.

    Returns:
        (B, c, h, w).
    """
    channels = latent.shape[1]
    # Attention functions expect one width for all three; columns of zeros add nothing.
    padded = F.pad(v, (0, q.shape[-1] - channels))
    bias = attend(q, k, padded)[..., :channels]
    return latent + bias.transpose(1, 2).reshape(latent.shape)


def injected(
    keys: Tensor,
    values: Tensor,
    f_keys: Tensor,
    f_values: Tensor,
    f_on_grid: Tensor,
    epsilon: float,
    value_strength: float,
) -> tuple[Tensor, Tensor]:
    """`K' = W_K [z, eps f]`, `V' = W_V [z + lambda eps f, eps f]`, the injection of P3S-Diffusion, Eq. 7.

    Args:
        keys, values: (..., N + M', C), W_K z and W_V z, and behind them what was appended for M' tokens of other
            subjects.
        f_keys, f_values: (..., M, C), W_K f and W_V f; leading dimensions of 1 serve all samples.
        f_on_grid: (..., N, C), W_V f with one token for each of z: f_values itself where f has the grid of z.
        epsilon: eps_t.
        value_strength: lambda.

    Returns:
        K' and V', (..., N + M' + M, C).

    Note:
        The projections of self-attention are linear without bias, so that it is the same whether f is weighted before
        them or after.
    """
    own, others = values.split([f_on_grid.shape[-2], values.shape[-2] - f_on_grid.shape[-2]], dim=-2)
    own = own + value_strength * epsilon * f_on_grid
    values = torch.cat([own, others], dim=-2) if others.shape[-2] else own
    return _appended(keys, epsilon * f_keys), _appended(values, epsilon * f_values)


def _appended(own: Tensor, tokens: Tensor) -> Tensor:
    return torch.cat([own, tokens.expand(*own.shape[:-2], -1, -1)], dim=-2)


def is_nonzero(f: Tensor) -> Tensor:
    """Which tokens are not zero in every sample; with only those, f = 0 injects nothing.

    A token of zeros is not nothing: its score is 0, so it takes its share of the softmax and pulls the result
    towards 0.

    Args:
        f: (B, M, C).

    Returns:
        (M,) bool.
    """
    return f.ne(0).any(-1).any(0)


def on_grid(f: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Tokens of one grid interpolated onto another; f itself where both are the same.

    Args:
        f: (..., h * w, C).
        grid: (h, w).
        target: (h', w').

    Returns:
        (..., h' * w', C).
    """
    if grid == target:
        return f
    pictures = f.reshape(-1, *grid, f.shape[-1]).movedim(-1, 1)
    # Not every device can do this in half precision.
    wide = pictures.float() if f.dtype.itemsize < 4 else pictures
    resized = F.interpolate(wide, size=target, mode="bilinear", antialias=True).to(f.dtype)
    return resized.flatten(2).transpose(1, 2).reshape(*f.shape[:-2], -1, f.shape[-1])


def injection_weight(schedule: str, time: float, alpha: float = 0.5, beta: float = 0.2, exponent: float = 2.0) -> float:
    """`eps_t = 1 - alpha (t / T)^k + beta`, the schedule of P3S-Diffusion, Eq. 10, and the paper's other ones.

    Args:
        schedule: one of SCHEDULES. "increasing" and "decreasing" are meant as in the paper's Table III, with the
            timestep: decreasing starts weak and ends strong, because sampling begins at t = T.
        time: t / T, from 1 (noise) to 0 (picture).
        alpha, beta, exponent: of Eq. 10; `exponent` is k, also of the two curves.
    """
    curve = time**exponent
    if schedule == PAPER:
        return 1 - alpha * curve + beta
    return {FIXED: 1.0, INCREASING: curve, DECREASING: 1 - curve, OFF: 0.0}[schedule]


def attention_consistency(copied: Tensor, original: Tensor, average: str = MEAN) -> Tensor:
    """`L_ac = MSE(M_c, M_o) / avg`, P3S-Diffusion, Eq. 11 and 12.

    Args:
        copied, original: (B, heads, N, L), maps of the copy and of the frozen U-Net.
        average: one of AVERAGES. "sum" is the paper's `avg = (Sum(M_c) + Sum(M_o)) / 2`; "mean" has means in place of
            the sums.

    Returns:
        a scalar.

    Note:
        Taken sample by sample, so that it does not depend on the size of the batch. Rows of a softmax sum to 1, so the
        paper's `avg` is the number of rows, heads * N: 32768 in the last layer of SD1.5 at 512 pixels. That leaves a
        loss near 1e-8, and with gamma = 0.1 no effect. With means `avg` is 1 / L: the loss is then of the size of the
        denoising loss, and independent of heads and picture.
    """
    copied, original = copied.flatten(1), original.flatten(1)
    totals = copied.sum(1) + original.sum(1) if average == SUM else copied.mean(1) + original.mean(1)
    return ((copied - original).square().mean(1) / (totals / 2)).mean()
