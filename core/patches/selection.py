"""Which tokens of pictures a mask selects."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.masks import covered_tokens

KeysValues = tuple[Tensor, Tensor]


class Tokens:
    """The tokens of a picture that a mask selects, worked out once for each grid and device.

    Args:
        mask: (H, W) in [0, 1]; None selects all.
    """

    def __init__(self, mask: Tensor | None) -> None:
        self._mask = mask
        self._tokens: dict[tuple[tuple[int, int], torch.device], Tensor] = {}

    def on(self, grid: tuple[int, int], device: torch.device) -> Tensor | None:
        """(n,), their indices on a grid; None is all of them."""
        if self._mask is None:
            return None
        if (grid, device) not in self._tokens:
            self._tokens[grid, device] = covered_tokens(self._mask.float(), grid).to(device)
        return self._tokens[grid, device]


EVERYWHERE = Tokens(None)


class Selection:
    """The tokens of references that masks select.

    Args:
        masks: (1 or R, H, W) in [0, 1]; None selects all.
    """

    def __init__(self, masks: Tensor | None) -> None:
        self._each = [EVERYWHERE] if masks is None else [Tokens(mask) for mask in masks]

    def of(self, grid: tuple[int, int], keys: Tensor, values: Tensor) -> list[KeysValues]:
        """Splits (G, R, ..., M, C) keys and values into R pairs of (G, ..., m, C) with the selected tokens.

        M may be several frames of h * w tokens; the mask is the same for all of them.
        """
        pairs = list(zip(keys.unbind(1), values.unbind(1), strict=True))
        tokens = [indices for each in self._each if (indices := each.on(grid, keys.device)) is not None]
        if not tokens:
            return pairs
        starts = torch.arange(0, keys.shape[-2], grid[0] * grid[1], device=keys.device).unsqueeze(1)
        each = [(starts + one).flatten() for one in tokens]
        if len(each) == 1:
            each = each * len(pairs)
        return [(k[..., index, :], v[..., index, :]) for (k, v), index in zip(pairs, each, strict=True)]
