"""Pasting: nothing outside the mask changes, and what does not fit is told. The official way is held to recordings."""

from __future__ import annotations

import pytest
import torch
from refattention.core.pictures.grid import binary_mask
from refattention.nodes.leffa_mask import EXACT, OFFICIAL, LeffaRepaint
from tryon import half_mask, picture

PERSON, PAINTED = picture(1, 200, 90, seed=1), picture(1, 200, 96, seed=2)


def test_exact_keeps_every_pixel_outside_the_mask() -> None:
    mask = half_mask(200, 90)
    got = LeffaRepaint.execute(PERSON, PAINTED, mask, EXACT)[0]
    assert torch.equal(got[:, :100], PERSON[:, :100])
    assert torch.equal(got[:, 120:], PAINTED[:, 120:, :90])
    edge = (got - PERSON)[:, 100:110].abs().mean((0, 2, 3)) / (PAINTED[:, :200, :90] - PERSON)[:, 100:110].abs().mean()
    assert 0.3 < edge[0] < 0.7 < edge[-1]
    official = LeffaRepaint.execute(PERSON, PAINTED, mask, OFFICIAL)[0]
    assert not torch.equal(official[:, :100], PERSON[:, :100])


def test_batches_and_a_small_mask() -> None:
    mask = (torch.rand(1, 50, 22, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    got = LeffaRepaint.execute(PERSON, PAINTED.expand(3, -1, -1, -1), mask, EXACT)[0]
    assert got.shape == (3, 200, 90, 3)
    outside = binary_mask(mask, (200, 90))[0] == 0
    assert torch.equal(got[1][outside], PERSON[0][outside])


def test_wrong_input_is_told() -> None:
    with pytest.raises(ValueError, match="generated is 40 x 40 pixels and does not cover image with its 90 x 200"):
        LeffaRepaint.execute(PERSON, picture(1, 40, 40), half_mask(200, 90), EXACT)
    with pytest.raises(ValueError, match="The batches do not fit together"):
        LeffaRepaint.execute(PERSON.expand(2, -1, -1, -1), PAINTED.expand(3, -1, -1, -1), half_mask(200, 90), EXACT)
