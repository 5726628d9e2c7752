"""RefDrop (arXiv 2405.17661), the kernels.

Symbols: a forward pass carries G chunks (conditional and unconditional half) of B samples each, stacked in dim 0.
N query tokens, M reference tokens, C = heads * head size. `Att(Q, K, V)` is handed in as a callable, so that
ComfyUI's own attention function, with whatever override it carries, does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.attention import Attend


@dataclass(frozen=True)
class Branch:
    """One reference term `c_j M_j * Att(Q, K_j, V_j)` of the RefDrop equation.

    Attributes:
        weight: `c_j M_j`; a float, or (1 or B, N, 1) where a mask varies it over the tokens.
        keys, values: (G, M, C), one reference for all samples of a chunk; or (G, B, M, C), one for each sample.
        first: index of the first sample of a chunk that is guided; those before it are left alone.
        with_own: attend to [K_j; K] instead of K_j alone ("concat").
    """

    weight: float | Tensor
    keys: Tensor
    values: Tensor
    first: int = 0
    with_own: bool = False


def attend_to_reference(attend: Attend, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`Att(Q, K_j, V_j)` for every sample of a chunk, without copying the reference once per sample.

    Where all samples of a chunk share the reference they are laid end to end as one long query sequence, because
    attention treats queries independently.

    Args:
        q: (G, B, N, C).
        keys, values: (G, M, C) or (G, B, M, C).

    Returns:
        (G, B, N, C).
    """
    if keys.ndim == q.ndim:
        return attend(q.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1)).reshape(q.shape)
    return attend(q.flatten(1, 2), keys, values).reshape(q.shape)


def attend_to_both(attend: Attend, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Concatenated attention `Att(Q, [K_j; K], [V_j; V])`.

    Args:
        q, k, v: (G, B, N, C), the samples' own.
        keys, values: (G, M, C) or (G, B, M, C), the reference's.

    Returns:
        (G, B, N, C).
    """
    samples = q.shape[1]

    def joined(reference: Tensor, own: Tensor) -> Tensor:
        each = reference if reference.ndim == own.ndim else reference.unsqueeze(1).expand(-1, samples, -1, -1)
        return torch.cat([each, own], dim=2).flatten(0, 1)

    return attend(q.flatten(0, 1), joined(keys, k), joined(values, v)).reshape(q.shape)


def reference_feature_guidance(
    attend: Attend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunks: int,
    branches: Sequence[Branch],
    joint: Tensor | None = None,
) -> Tensor:
    """Reference feature guidance, RefDrop (arXiv 2405.17661):

        out = sum_j c_j M_j * Att(Q, K_j, V_j) + (1 - sum_j c_j M_j) * Att(Q, K, V)

    In models whose image tokens attend to text in the same softmax, Q, K and V are those of the image tokens, X is
    what the model computes for them, and the difference between the two attentions is added (equation 15):

        out = X + sum_j c_j M_j * (Att(Q, K_j, V_j) - Att(Q, K, V))

    Args:
        attend: computes Att for (batch, tokens, C) tensors.
        q, k, v: (G * B, N, C).
        chunks: G, how many chunks dim 0 holds.
        branches: the reference terms j.
        joint: (G * B, N, C), X; changed in place. None for models without text in the attention.

    Returns:
        (G * B, N, C). Tokens and samples whose weights are 0 equal `Att(Q, K, V)`, or X, to the bit.

    Note:
        The paper has one reference and one scalar; several references, token masks and the concatenated
        form as a branch of its own are extensions. A branch `with_own` and weight 1 is exactly
        `Att(Q, [K_j; K], [V_j; V])`.
    """
    own_q, own_k, own_v = (t.unflatten(0, (chunks, -1)) for t in (q, k, v))
    total = _total_weight(own_q, branches)
    if joint is not None:
        out = joint.unflatten(0, (chunks, -1))
        if isinstance(total, Tensor) or total != 0:
            out -= attend(q, k, v).unflatten(0, (chunks, -1)).mul_(total)
    elif isinstance(total, float) and total == 1.0:
        out = torch.zeros_like(own_q)  # the samples' own attention would be multiplied by 0
    else:
        out = attend(q, k, v).unflatten(0, (chunks, -1)).mul_(1 - total)
    for branch in branches:
        rows = slice(branch.first, None)
        if branch.with_own:
            own = own_q[:, rows], own_k[:, rows], own_v[:, rows]
            term = attend_to_both(attend, *own, branch.keys, branch.values)
        else:
            term = attend_to_reference(attend, own_q[:, rows], branch.keys, branch.values)
        # In place: at 4096 tokens and more, passes over memory are what this function itself costs.
        if isinstance(branch.weight, Tensor):
            out[:, rows].addcmul_(term, branch.weight)
        else:
            out[:, rows].add_(term, alpha=branch.weight)
    return out.flatten(0, 1)


def _total_weight(q: Tensor, branches: Sequence[Branch]) -> float | Tensor:
    """Sum of the weights: a float if it is the same everywhere, else (B, N, 1) for q of (G, B, N, C)."""
    if all(branch.first == 0 and isinstance(branch.weight, float) for branch in branches):
        return sum(branch.weight for branch in branches)
    total = q.new_zeros((*q.shape[1:3], 1))
    for branch in branches:
        total[branch.first :] += branch.weight
    return total
