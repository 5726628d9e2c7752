"""Garment-agnostic masks. The official rules are held to recorded masks in tests/golden; here, what is not recorded."""

from __future__ import annotations

from typing import Any

import cv2
import numpy
import pytest
import torch
from bootstrap import ROOT
from refattention.core.leffa import masks as agnostic
from refattention.core.leffa import outline, parsing
from refattention.nodes.leffa_mask import CLEAN, DRESS_CODE, VITON_HD, LeffaMask
from scipy import ndimage

GOLDEN = numpy.load(ROOT / "tests" / "golden" / "leffa_masks.npz")
# The first stands at full length; the fourth is cut by the frame at the trousers.
PERSONS = ["person1", "person2", "person3", "person4"]


def person(name: str) -> tuple[Any, Any]:
    return GOLDEN[f"{name}.parse"], GOLDEN[f"{name}.keypoints"]


def share(mask: Any, labels: Any, *which: int) -> float:
    """How much of what has these labels is masked."""
    return float(mask[numpy.isin(labels, which)].mean())


@pytest.mark.parametrize("name", PERSONS)
@pytest.mark.parametrize("garment", agnostic.GARMENTS)
def test_clean_protects_what_stays_and_covers_what_goes(name: str, garment: str) -> None:
    labels, points = person(name)
    mask = agnostic.clean(labels, points, garment)
    fixed = agnostic.HD_FIXED | agnostic.OTHER_GARMENTS[garment] | agnostic.HD_HEAD
    fixed -= {parsing.LEFT_ARM, parsing.RIGHT_ARM} if garment != agnostic.LOWER_BODY else set()
    assert not mask[numpy.isin(labels, list(fixed))].any()
    assert mask[numpy.isin(labels, list(agnostic.HD_GARMENT[garment]))].all()


def test_clean_has_not_the_official_defect() -> None:
    """On a full-length figure the official rule for virtual_tryon swallows trousers and shoes."""
    labels, points = person("person1")
    legs = parsing.PANTS, parsing.LEFT_SHOE, parsing.RIGHT_SHOE
    official, clean = (rule(labels, points, "upper_body") for rule in (agnostic.viton_hd, agnostic.clean))
    assert share(official, labels, *legs) > 0.95
    assert share(clean, labels, *legs) == 0
    top = slice(0, 250)  # and is the same rule where the defect is not
    assert (official[top] != clean[top]).mean() < 0.02


def test_clean_keeps_arms_that_leave_the_picture_inside() -> None:
    labels, points = person("person1")
    points = points.copy()
    points[parsing.WRIST_RIGHT] = points[parsing.ELBOW_RIGHT] + [-150, 0]
    official, clean = (rule(labels, points, "upper_body") for rule in (agnostic.viton_hd, agnostic.clean))
    assert official[:, 340:].mean() > 0.1 > 0.02 > clean[:, 340:].mean()


def test_clean_at_another_size_is_the_same_mask() -> None:
    labels, points = person("person3")
    large = labels.repeat(2, 0).repeat(2, 1)
    small = agnostic.clean(labels, points, "upper_body")
    big = agnostic.clean(large, points * 2, "upper_body")
    assert (big[::2, ::2] != small).mean() < 0.01


def test_outlines_equal_opencv() -> None:
    """Points and filled polygons of many random blobs, against the library whose pixels the official rule has."""
    generator = numpy.random.default_rng(0)
    compared = 0
    for _ in range(150):
        shape = generator.integers(6, 70, 2)
        noise = ndimage.gaussian_filter(generator.normal(size=shape), generator.uniform(0.4, 5))
        blobs, number = ndimage.label(agnostic._filled(noise > 0), structure=numpy.ones((3, 3)))
        for blob in range(1, number + 1):
            picture = (blobs == blob).astype(numpy.uint8)
            (want,), _ = cv2.findContours(picture, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_TC89_L1)
            got = outline.dominant_points(*outline.border(blobs == blob))
            assert got == [tuple(point) for point in want.reshape(-1, 2).tolist()]
            assert outline.area(got) == abs(cv2.contourArea(want, True))
            cv2.drawContours(canvas := numpy.zeros_like(picture), [want], 0, 1, -1)
            assert (outline.filled(got, picture.shape) == canvas.astype(bool)).all()
            compared += 1
    assert compared > 300


def as_picture(labels: Any) -> torch.Tensor:
    return (torch.from_numpy(labels.copy()).float() / 255)[None, ..., None].expand(-1, -1, -1, 3)


def frame(points: Any, width: int = 384, height: int = 512) -> dict[str, Any]:
    found = (points > 0).any(axis=1, keepdims=True).astype(float)
    numbers = numpy.concatenate([points, found], axis=1).ravel().tolist()
    return {"people": [{"pose_keypoints_2d": numbers}], "canvas_width": width, "canvas_height": height}


@pytest.mark.parametrize("rule", [CLEAN, VITON_HD, DRESS_CODE])
def test_node_reads_what_other_nodes_give(rule: str) -> None:
    labels, points = person("person3")
    want = LeffaMask.execute(as_picture(labels), "upper_body", rule, "ATR", [frame(points)])[0]
    assert want.shape == (1, 512, 384)
    palette = numpy.array([parsing._colour(label) for label in range(19)], dtype=numpy.uint8)
    coloured = torch.from_numpy(palette[labels]).float()[None] / 255
    assert torch.equal(LeffaMask.execute(coloured, "upper_body", rule, "ATR", [frame(points)])[0], want)
    shares = frame(points / [384, 512], 384, 512)
    assert torch.equal(LeffaMask.execute(as_picture(labels), "upper_body", rule, "ATR", [shares])[0], want)
    canvas = frame(points * 2, 768, 1024)
    assert torch.equal(LeffaMask.execute(as_picture(labels), "upper_body", rule, "ATR", [canvas])[0], want)
    two = as_picture(labels).expand(2, -1, -1, -1)
    assert torch.equal(LeffaMask.execute(two, "upper_body", rule, "ATR", [frame(points)])[0], want.expand(2, -1, -1))


def test_official_rules_bring_a_map_to_their_size() -> None:
    labels, points = person("person3")
    large = as_picture(labels.repeat(2, 0).repeat(2, 1))
    for rule in (VITON_HD, DRESS_CODE):
        got = LeffaMask.execute(large, "dresses", rule, "ATR", [frame(points * 2, 768, 1024)])[0]
        assert torch.equal(got, LeffaMask.execute(as_picture(labels), "dresses", rule, "ATR", [frame(points)])[0])


def test_lip_labels() -> None:
    """A LIP map of the same person gives the same mask; the inverse table leaves out what LIP does not tell apart."""
    labels, points = person("person1")
    labels = numpy.where(labels == parsing.NECK, parsing.HEAD, labels)  # LIP has neither necks nor belts
    labels = numpy.where(labels == parsing.BELT, parsing.UPPER, labels)
    inverse = {int(atr): lip for lip, atr in reversed(list(enumerate(parsing.LIP_TO_ATR)))}
    assert set(numpy.unique(labels)) <= set(inverse)
    lip = numpy.vectorize(inverse.get)(labels).astype(numpy.uint8)
    want = LeffaMask.execute(as_picture(labels), "upper_body", CLEAN, "ATR", [frame(points)])[0]
    assert torch.equal(LeffaMask.execute(as_picture(lip), "upper_body", CLEAN, "LIP", [frame(points)])[0], want)


def test_clean_works_without_keypoints() -> None:
    labels, _ = person("person1")
    mask = LeffaMask.execute(as_picture(labels), "upper_body", CLEAN, "ATR")[0][0].numpy() > 0
    assert share(mask, labels, parsing.UPPER, parsing.LEFT_ARM, parsing.RIGHT_ARM) == 1
    assert share(mask, labels, parsing.PANTS) == 0


def nobody() -> dict[str, Any]:
    return {"people": [], "canvas_width": 384, "canvas_height": 512}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parsing": torch.rand(1, 64, 48, 3)}, r"parsing is no map of labels: pixel \(0, 0\) has the colour"),
        ({"parsing": torch.zeros(1, 512, 384, 3)}, r"nothing to replace .* type lower_body; its labels are \[0\]"),
        ({"garment_type": "upper_body", "rule": VITON_HD, "keypoints": None}, "draws the arms from keypoints"),
        ({"keypoints": [nobody()]}, "keypoints hold no person"),
        ({"keypoints": [frame(numpy.ones((5, 2)))]}, "keypoints hold 5 body points"),
        ({"keypoints": [nobody()] * 2}, "keypoints hold 2 frames, but parsing 1 maps"),
    ],
)
def test_wrong_input_is_told(change: dict[str, Any], message: str) -> None:
    labels, points = person("person1")
    inputs = {"parsing": as_picture(labels), "garment_type": "lower_body", "rule": CLEAN, "labels": "ATR"}
    with pytest.raises(ValueError, match=message):
        LeffaMask.execute(**{**inputs, "keypoints": [frame(points)], **change})
