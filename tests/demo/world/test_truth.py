"""The world's truth is that of its pictures."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from refattention.core.leffa import masks
from refattention.core.leffa.parsing import UPPER
from refattention_demo.world import draw, record, truth
from refattention_demo.world.figure import SHIRT_SCALE
from refattention_demo.world.record import Record
from refattention_demo.world.styles import PALETTE

SEEDS = range(12)


def a_record(seed: int, style: str = "flat", people: int = 1) -> Record:
    return replace(record.random_record(np.random.default_rng(seed), people), style=style)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_shirt_of_the_picture_is_the_flat_shirt_moved(seed: int) -> None:
    size = 256
    shown = a_record(seed)
    places = truth.on_flat_shirt(shown, 0, size)
    known = np.isfinite(places).all(-1)
    # away from borders, where neighbours are mixed in
    inner = known & ~_grown(~known) & truth.layers(shown, size).mask(0, "torso")
    cell = np.clip(np.floor(places[inner] * size).astype(int), 0, size - 1)
    worn = draw.picture(shown, size)[inner].astype(int)
    flat = draw.flat_garment(shown.figures[0].character.shirt, size)[cell[:, 1], cell[:, 0]].astype(int)
    assert inner.sum() > 1000
    assert (np.abs(worn - flat).max(-1) < 40).mean() > 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_flow_to_the_same_picture_is_no_movement(seed: int) -> None:
    shown = a_record(seed)
    moved = truth.flow(shown, shown)
    row, column = np.nonzero(np.isfinite(moved).all(-1))
    assert len(row) > 0.95 * truth.shirt(shown).sum()
    np.testing.assert_allclose(moved[row, column], np.stack([column, row], -1) + 0.5, atol=1e-6)


def test_flow_leads_to_the_same_place_of_the_shirt() -> None:
    shown = a_record(3)
    other = record.another_view(shown, np.random.default_rng(4))
    moved = truth.flow(shown, other)
    known = np.isfinite(moved).all(-1)
    there = np.floor(moved[known]).astype(int)
    first, second = truth.on_flat_shirt(shown)[known], truth.on_flat_shirt(other)[there[:, 1], there[:, 0]]
    assert known.sum() > 500
    # within a pixel of the larger shirt
    assert np.abs(first - second).max() < 1.5 / (draw.SIZE * SHIRT_SCALE * 0.9)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_middle_of_the_shirt_has_its_colour_and_its_label(seed: int) -> None:
    shown = a_record(seed)
    shirt = shown.figures[0].character.shirt
    mask = truth.shirt(shown)
    colours = draw.picture(shown)[mask & ~_grown(~mask)].astype(int)
    distance = np.minimum(*[np.abs(colours - PALETTE[name]).max(-1) for name in (shirt.colour, shirt.second)])
    assert (distance < 12).mean() > 0.6
    assert (truth.parsing(shown)[mask] == UPPER).all()


def test_two_figures_do_not_overlap_and_leave_the_scene() -> None:
    shown = a_record(1, people=2)
    first, second = truth.subject(shown, 0), truth.subject(shown, 1)
    assert first.sum() > 1500 and second.sum() > 1500
    assert not (first & second).any()
    assert (~(first | second)).sum() > 1500


def test_the_logo_covers_four_latent_cells_both_ways() -> None:
    shown = a_record(0)
    rows, columns = np.nonzero(truth.logo(shown))
    assert min(np.ptp(rows), np.ptp(columns)) >= 4 * 8


@pytest.mark.parametrize("seed", SEEDS)
def test_the_packs_own_mask_rule_accepts_the_maps(seed: int) -> None:
    shown = a_record(seed)
    mask = masks.clean(truth.parsing(shown), truth.keypoints(shown), masks.UPPER_BODY)
    shirt = truth.shirt(shown)
    assert (mask & shirt).sum() == shirt.sum()
    assert mask.mean() < 0.75


@pytest.mark.parametrize("seed", SEEDS)
def test_body_maps_have_densepose_parts_and_places(seed: int) -> None:
    shown = a_record(seed)
    maps = truth.densepose(shown)
    part = maps[..., 0]
    assert set(np.unique(part)) <= {0, 2, 3, 4, 7, 8, 15, 16, 19, 20, 23, 24}
    assert ((part > 0) == truth.subject(shown)).mean() > 0.999
    assert {2, 23, 24} <= set(np.unique(part))
    for number in np.unique(part)[1:]:
        assert np.ptp(maps[part == number][:, 1:].astype(int), axis=0).max() > 15, "a place on the part, not one number"


def test_places_on_an_arm_turn_with_it() -> None:
    """The hand's end of a lower arm has the same U, however the arm is held."""
    ends = []
    for pose in ("standing", "cheering"):
        rng = np.random.default_rng(0)
        figure = record.Figure(record.random_character(rng), record.random_pose(rng, pose))
        shown = Record((figure,))
        maps, wrist = truth.densepose(shown), truth.keypoints(shown)[truth.JOINTS["left wrist"]]
        arm = np.argwhere(maps[..., 0] == truth.DENSEPOSE["left lower arm"])
        nearest = arm[np.abs(arm[:, ::-1] - wrist).sum(-1).argmin()]
        ends.append(int(maps[tuple(nearest)][1]))
    assert abs(ends[0] - ends[1]) < 30


def test_joints_lie_on_the_parts_they_end() -> None:
    shown = a_record(5)
    joints, found = truth.keypoints(shown, size=256), truth.layers(shown, 256)
    x, y = joints[truth.JOINTS["nose"]].astype(int)
    assert found.mask(0, "head")[y, x]
    for name in ("left wrist", "right wrist"):
        x, y = joints[truth.JOINTS[name]].astype(int)
        if (x, y) != (0, 0):
            arm = found.mask(0, f"{name.split()[0]} hand", f"{name.split()[0]} lower arm")
            rows, columns = np.nonzero(arm)
            assert math.hypot(*np.min(np.abs(np.stack([columns - x, rows - y])), 1)) < 12


def _grown(mask: np.ndarray) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
