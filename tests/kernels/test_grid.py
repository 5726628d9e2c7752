"""The mapping between pixels and patches, for every size and fit, against exact fractions."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refattention.core.kernels.grid import FITS, Axis, layout

SIDES, PATCHES = st.integers(1, 74), st.integers(1, 16)
sizes = st.integers(16, 4096)
small = st.integers(1, 90)


def exact_patch(axis: Axis, pixel: int) -> int:
    """Where the centre of a pixel lies once the picture is resized, in patches."""
    return floor(Fraction(2 * pixel + 1, 2) * Fraction(axis.content, axis.pixels) / axis.patch)


@settings(deadline=None, max_examples=300)
@given(sizes, sizes, st.sampled_from(FITS), SIDES, PATCHES, st.data())
def test_pixel_to_patch_and_back(height: int, width: int, fit: str, side: int, patch: int, data: st.DataObject) -> None:
    plan = layout(height, width, fit, side, patch)
    for axis, pixels in ((plan.rows, height), (plan.columns, width)):
        for pixel in {0, pixels - 1, data.draw(st.integers(0, pixels - 1))}:
            cell = axis.patch_of(pixel)
            assert cell == exact_patch(axis, pixel)
            assert 0 <= cell < axis.patches
            assert pixel in axis.pixels_of(cell)
        cell = data.draw(st.integers(0, axis.patches - 1))
        assert all(axis.patch_of(pixel) == cell for pixel in axis.pixels_of(cell))


@settings(deadline=None, max_examples=100)
@given(small, small, st.sampled_from(FITS), st.integers(1, 20), PATCHES)
def test_patches_share_out_all_pixels(height: int, width: int, fit: str, side: int, patch: int) -> None:
    plan = layout(height, width, fit, side, patch)
    for axis, pixels in ((plan.rows, height), (plan.columns, width)):
        assert [pixel for cell in range(axis.patches) for pixel in axis.pixels_of(cell)] == list(range(pixels))


@settings(deadline=None, max_examples=300)
@given(sizes, sizes, st.sampled_from(FITS), SIDES, PATCHES)
def test_layout_keeps_what_its_fit_promises(height: int, width: int, fit: str, side: int, patch: int) -> None:
    plan = layout(height, width, fit, side, patch)
    h, w = plan.grid
    covered = {(row, column) for row, column in plan.squares}
    for axis, starts, cells in ((plan.rows, {r for r, _ in covered}, h), (plan.columns, {c for _, c in covered}, w)):
        reached = {cell for start in starts for cell in range(start, start + side)}
        assert set(range(cells)) <= reached
        assert axis.content <= axis.patches * patch
    contents = plan.rows.content, plan.columns.content
    if fit == "stretch":
        assert contents == (side * patch, side * patch) and plan.squares == ((0, 0),)
    if fit == "pad":
        assert max(contents) == side * patch and len(plan.squares) == 1
        exact = Fraction(side * patch * min(height, width), max(height, width))
        assert abs(min(contents) - exact) <= Fraction(1, 2) or min(contents) == 1
    if fit == "tiles":
        assert min(h, w) == side and len(plan.squares) == ceil(max(h, w) / side)
        assert abs(Fraction(max(h, w)) - Fraction(side * max(height, width), min(height, width))) <= Fraction(1, 2)


@settings(deadline=None, max_examples=60)
@given(small, small, st.sampled_from(FITS), st.integers(1, 9), st.integers(1, 6))
def test_interpolation(height: int, width: int, fit: str, side: int, patch: int) -> None:
    axis = layout(height, width, fit, side, patch).columns
    weights = axis.interpolation().double()
    for pixel in range(axis.pixels):
        place = Fraction(2 * pixel + 1, 2) * Fraction(axis.content, axis.pixels) / axis.patch - Fraction(1, 2)
        place = min(max(place, Fraction(0)), Fraction(axis.patches - 1))
        want = torch.zeros(axis.patches, dtype=torch.float64)
        want[floor(place)] += 1 - float(place - floor(place))
        want[min(floor(place) + 1, axis.patches - 1)] += float(place - floor(place))
        assert (weights[pixel] - want).abs().max() < 1e-6


def mean_of_patches(squares: torch.Tensor, patch: int) -> torch.Tensor:
    """An encoder whose features are the patches' mean colours: (B, S, S, 3) -> (B, side, side, 3)."""
    return torch.nn.functional.avg_pool2d(squares.movedim(-1, 1), patch).movedim(1, -1)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(96, 96), (96, 250), (250, 96), (33, 1000), (61, 60)])
def test_features_return_to_the_place_of_their_pixels(fit: str, size: tuple[int, int]) -> None:
    height, width = size
    ramp = torch.stack(torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij"), -1)
    image = torch.cat([ramp, torch.zeros(height, width, 1)], -1)
    plan = layout(height, width, fit, side=12, patch=7)
    features = plan.join(mean_of_patches(plan.cut(image, (0.0, 0.0, 1.0)), 7))
    assert features.shape == (*plan.grid, 3)
    for y in (0, height // 3, height - 1):
        for x in (0, width // 2, width - 1):
            row, column = plan.patch_of(x, y)
            rows, columns = plan.rows.pixels_of(row), plan.columns.pixels_of(column)
            if not rows or not columns:
                continue
            # The last patch of a padded picture is partly padding.
            covered = min(1, (plan.rows.content - row * 7) / 7) * min(1, (plan.columns.content - column * 7) / 7)
            want = image[rows.start : rows.stop, columns.start : columns.stop, :2].mean((0, 1)) * covered
            assert (features[row, column, :2] - want).abs().max() < 0.05
            assert abs(features[row, column, 2] - (1 - covered)) < 0.02
