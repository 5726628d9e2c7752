"""Which tokens of references a mask selects."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.masks import covered_tokens

KeysValues = tuple[Tensor, Tensor]


class Selection:
    """The tokens of references that masks select, worked out once for each grid and device.

    Args:
        masks: (1 or R, H, W) in [0, 1]; None selects all.
    """

    def __init__(self, masks: Tensor | None) -> None:
        self._masks = masks
        self._tokens: dict[tuple[tuple[int, int], torch.device], list[Tensor]] = {}

    def tokens(self, grid: tuple[int, int], device: torch.device) -> list[Tensor] | None:
        """Their indices on a grid for each mask; None is all of them."""
        if self._masks is None:
            return None
        if (grid, device) not in self._tokens:
            self._tokens[grid, device] = [covered_tokens(mask, grid).to(device) for mask in self._masks.float()]
        return self._tokens[grid, device]

    def of(self, grid: tuple[int, int], keys: Tensor, values: Tensor) -> list[KeysValues]:
        """Splits (G, R, ..., M, C) keys and values into R pairs of (G, ..., m, C) with the selected tokens.

        M may be several frames of h * w tokens; the mask is the same for all of them.
        """
        pairs = list(zip(keys.unbind(1), values.unbind(1), strict=True))
        tokens = self.tokens(grid, keys.device)
        if tokens is None:
            return pairs
        starts = torch.arange(0, keys.shape[-2], grid[0] * grid[1], device=keys.device).unsqueeze(1)
        each = [(starts + one).flatten() for one in tokens]
        if len(each) == 1:
            each = each * len(pairs)
        return [(k[..., index, :], v[..., index, :]) for (k, v), index in zip(pairs, each, strict=True)]
