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


@pytest.mark.parametrize("scale", [0.5, 1.5, 2.0])
def test_a_generated_picture_that_was_scaled_since_goes_where_it_belongs(scale: float) -> None:
    """A smooth picture, so that scaling there and back leaves it; its upper left part alone would be far off."""
    rows, columns = torch.linspace(0, 1, 200)[:, None, None], torch.linspace(0, 1, 96)[:, None]
    painted = torch.cat([rows.expand(-1, 96, 1), columns.expand(200, -1, 1), rows * columns], -1).unsqueeze(0)
    size = round(200 * scale), round(96 * scale)
    scaled = torch.nn.functional.interpolate(painted.movedim(-1, 1), size, mode="bilinear").movedim(1, -1)
    mask = half_mask(200, 90)
    got, want = (LeffaRepaint.execute(PERSON, each, mask, EXACT)[0] for each in (scaled, painted))
    assert (got - want).abs().max() < 0.01
    assert torch.equal(got[:, :100], PERSON[:, :100])


def test_wrong_input_is_told() -> None:
    with pytest.raises(ValueError, match="generated is 40 x 40 pixels and does not fit image with its 90 x 200"):
        LeffaRepaint.execute(PERSON, picture(1, 40, 40), half_mask(200, 90), EXACT)
    with pytest.raises(ValueError, match=r"^(generated|mask) holds a batch of \d, but image one of \d\. Give equal"):
        LeffaRepaint.execute(PERSON.expand(2, -1, -1, -1), PAINTED.expand(3, -1, -1, -1), half_mask(200, 90), EXACT)
