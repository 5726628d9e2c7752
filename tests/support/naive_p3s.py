"""P3S without training on any family written a second time, in the plainest way, without the pack's code.

Text and what else shares the attention are keys as they were; the subjects are more of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import oracle
import torch
from naive_families import NaiveFamilyRefDrop
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d


@dataclass
class NaiveFamilyP3S(NaiveFamilyRefDrop):
    """One P3S over all layers.

    Attributes:
        strength: eps at every step.
        references: of each subject.
        mask: (h, w) of any size, where subjects are injected.
        reference_mask: (h, w) of any size, what of the references is the subject.
        value_strength: lambda; 0 where references are not of the picture's size.
        is_conditional: whether only the conditional half gets subjects.
    """

    value_strength: float = 0.0
    is_conditional: bool = False

    def _change(self, row: int, own: list[Tensor], number: int, grid: tuple[int, int, int], heads: int) -> Tensor:
        """What a sample's attention output is changed by: Att(Q, K', V') - Att(Q, K, V), of the picture's queries."""
        k_all, v_all, mask, image = self.sequence
        q, k, v = own[0][row], k_all[row].double(), v_all[row].double()
        if self.is_conditional and self.half == 1:
            return torch.zeros_like(q, dtype=torch.float64)
        bias = _bias(mask, row, image, len(k))
        plain = _attention(q, k, v, heads, bias)
        keys, values = [k], v.clone()
        tokens = []
        for kept in self.kept:
            f_keys, f_values = (self.strength * t.double() for t in kept[number])
            subject = torch.ones(len(f_keys), dtype=torch.bool)
            if self.reference_mask is not None:  # of a reference of the picture's size
                share = adaptive_avg_pool2d(self.reference_mask.double()[None], grid[1:]).flatten()
                subject = share >= min(0.5, share.max())
            if self.value_strength:
                values[image][subject] += self.value_strength * f_values[subject]
            keys.append(f_keys[subject])
            tokens.append(f_values[subject])
        bias = torch.cat([bias, bias.new_zeros(*bias.shape[:-1], sum(map(len, tokens)))], dim=-1)
        change = _attention(q, torch.cat(keys), torch.cat([values, *tokens]), heads, bias) - plain
        if self.mask is not None:
            share = adaptive_avg_pool2d(self.mask.double()[None], grid[1:]).flatten()
            change[share < 0.5] = 0
        return change


def _bias(mask: Tensor | None, row: int, image: slice, keys: int) -> Tensor:
    """A mask as the host's attention takes it, for one sample: (1 or heads, 1 or n, keys), added to the scores."""
    if mask is None:
        return torch.zeros(1, 1, keys, dtype=torch.float64)
    added = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask
    added = added.double()
    added = added[None] if added.ndim == 2 else added
    added = added[:, None] if added.ndim == 3 else added
    added = added[row if len(added) > 1 else 0]
    return added[:, image] if added.shape[1] > 1 else added


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor) -> Tensor:
    weights = (oracle.scores(q, k, heads) + bias).softmax(-1)
    parts = v.double().unflatten(-1, (heads, -1))
    return torch.cat([weights[head] @ parts[:, head] for head in range(heads)], dim=-1)
