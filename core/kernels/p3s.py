"""P3S-Diffusion (arXiv 2412.19533), the kernels: encoder, injection, schedule, attention consistency.

Symbols: B samples, z (B, N, C) the hidden states that enter a self-attention of the frozen U-Net, f (B, M, C) those of
its trainable copy, epsilon_t the weight of the injection at timestep t, lambda its weight in the values.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import Attend

PAPER, FIXED, INCREASING, DECREASING, OFF = "paper", "fixed", "increasing", "decreasing", "off"
SCHEDULES = [PAPER, FIXED, INCREASING, DECREASING, OFF]


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


def injected_states(
    z: Tensor, f: Tensor, on_grid: Tensor, epsilon: float, value_weight: float, identity_at_zero: bool = False
) -> tuple[Tensor, Tensor]:
    """What keys and values are projected from in P3S-Diffusion, Eq. 7: `[z, eps f]` and `[z + lambda eps f, eps f]`.

    Args:
        z: (B, N, C).
        f: (1 or B, M, C).
        on_grid: (1 or B, N, C), f once more, one token for each of z; f itself where the copy sees the same grid.
        epsilon: epsilon_t.
        value_weight: lambda.
        identity_at_zero: leaves out the tokens of f that are zero in every sample.

    Returns:
        keys' and values' sources, (B, N + M, C) each.

    Note:
        A token of zeros is not nothing: its score is 0, so it takes its share of the softmax and pulls the result
        towards 0. With `identity_at_zero`, f = 0 returns z twice, to the bit.
    """
    if identity_at_zero:
        f = f[:, f.ne(0).any(-1).any(0)]
    tokens = epsilon * f.expand(len(z), -1, -1)
    values = z + value_weight * epsilon * on_grid
    return torch.cat([z, tokens], dim=1), torch.cat([values, tokens], dim=1)


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


def attention_map(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """`Softmax(Q K^T / sqrt(d))`, P3S-Diffusion, Eq. 13.

    Args:
        q: (B, N, heads * d).
        k: (B, L, heads * d).

    Returns:
        (B, heads, N, L), rows sum to 1.
    """
    q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def attention_consistency(copied: Tensor, original: Tensor) -> Tensor:
    """`L_ac = MSE(M_c, M_o) / avg`, `avg = (Sum(M_c) + Sum(M_o)) / 2`, P3S-Diffusion, Eq. 11 and 12.

    Args:
        copied, original: (B, heads, N, L), maps of the copy and of the frozen U-Net.

    Returns:
        a scalar.

    Note:
        Taken sample by sample, so that it does not depend on the size of the batch. Rows of a softmax sum to 1, so
        `avg` is the number of rows, heads * N.
    """
    copied, original = copied.flatten(1), original.flatten(1)
    average = (copied.sum(1) + original.sum(1)) / 2
    return ((copied - original).square().mean(1) / average).mean()
