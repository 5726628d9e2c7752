"""Masks on token grids, against plain counting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refattention.core.kernels.masks import covered_tokens, to_grid, token_weights


def share_of_cell(mask: torch.Tensor, grid: tuple[int, int], row: int, column: int) -> float:
    """Mean of the pixels that a token touches."""
    (height, width), (h, w) = mask.shape, grid
    rows = slice(row * height // h, -(-(row + 1) * height // h))
    columns = slice(column * width // w, -(-(column + 1) * width // w))
    return mask[rows, columns].double().mean().item()


@settings(deadline=None, max_examples=60)
@given(*[st.integers(1, 70)] * 2, *[st.integers(1, 17)] * 2, st.integers(0, 2**16))
def test_every_size_to_every_grid(height: int, width: int, h: int, w: int, seed: int) -> None:
    mask = torch.rand((height, width), generator=torch.Generator().manual_seed(seed))
    grid = to_grid(mask.unsqueeze(0), (h, w))[0]
    want = [[share_of_cell(mask, (h, w), row, column) for column in range(w)] for row in range(h)]
    assert (grid - torch.tensor(want)).abs().max() < 1e-5


def test_token_weights_are_row_major() -> None:
    mask = torch.zeros(2, 40, 60)
    mask[1, :20, 40:] = 1
    weights = token_weights(mask, (2, 3))
    assert weights.shape == (2, 6, 1)
    assert weights[0].sum() == 0
    assert weights[1].flatten().tolist() == [0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_masks_stay_exact(value: float) -> None:
    assert torch.equal(to_grid(torch.full((1, 37, 53), value), (9, 7)), torch.full((1, 9, 7), value))


def test_covered_tokens_are_those_at_least_half_covered() -> None:
    mask = torch.zeros(8, 8)
    mask[:4, :2] = 1  # token 0 covered by half, token 1 and below not at all
    mask[4:, 3:] = 1  # token 2 by a quarter, token 3 fully
    assert covered_tokens(mask, (2, 2)).tolist() == [0, 3]


def test_a_thin_subject_keeps_its_best_token() -> None:
    mask = torch.zeros(64, 64)
    mask[40:44, 9:10] = 1
    assert covered_tokens(mask, (4, 4)).tolist() == [8]
