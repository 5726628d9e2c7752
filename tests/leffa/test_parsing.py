"""Parsing maps of different parsers: whose labels, which colours, and what a lossy file did to them."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from bodies import jpeg
from bootstrap import ROOT
from PIL import Image
from refattention.core.leffa import masks as agnostic
from refattention.core.leffa import parsing
from refattention.core.leffa.parsing import ATR, AUTO, LIP, labels_of
from refattention.nodes.leffa_mask import LeffaMask

GOLDEN = numpy.load(ROOT / "tests" / "golden" / "leffa_masks.npz")
PERSONS = ["person1", "person2", "person3", "person4"]
INVERSE = {int(atr): lip for lip, atr in reversed(list(enumerate(parsing.LIP_TO_ATR)))}
SHOES = parsing.LEFT_SHOE, parsing.RIGHT_SHOE


def atr(name: str) -> Any:
    return GOLDEN[f"{name}.parse"]


def common(name: str) -> Any:
    """The person without what LIP does not tell apart: neck, belt, bag as gloves."""
    labels = numpy.where(atr(name) == parsing.NECK, parsing.HEAD, atr(name))
    return numpy.where(labels == parsing.BELT, parsing.UPPER, labels)


def lip(labels: Any) -> Any:
    return numpy.vectorize(INVERSE.get)(labels).astype(numpy.uint8)


def picture(pixels: Any) -> torch.Tensor:
    pixels = pixels[..., None].repeat(3, -1) if pixels.ndim == 2 else pixels
    return torch.from_numpy(pixels.astype(numpy.float32)) / 255


def drawn(labels: Any, palette: Any) -> Any:
    return numpy.array(palette, dtype=numpy.uint8)[labels]


CUSTOMARY = [parsing._colour(label) for label in range(20)]


@pytest.mark.parametrize("name", PERSONS)
@pytest.mark.parametrize("shoes", [True, False], ids=["shoes", "barefoot"])
def test_the_data_set_is_told(name: str, shoes: bool) -> None:
    labels = common(name) if shoes else numpy.where(numpy.isin(common(name), SHOES), 0, common(name))
    assert numpy.array_equal(labels_of(picture(labels), AUTO), labels)
    numbers = lip(labels)
    want = labels_of(picture(numbers), LIP)
    for pixels in (numbers, drawn(numbers, CUSTOMARY), drawn(numbers, parsing.GRAPHONOMY)):
        assert numpy.array_equal(labels_of(picture(pixels), AUTO), want)
    for hair in (True, False):
        numbers = numbers if hair else numpy.where(numbers == parsing.HAIR, 0, numbers)
        with pytest.raises(ValueError, match=r"holds LIP labels .* Set labels to LIP, or to auto"):
            labels_of(picture(numbers), ATR)
        other = labels if hair else numpy.where(labels == parsing.HAIR, 0, labels)
        with pytest.raises(ValueError, match=r"holds ATR labels .* Set labels to ATR"):
            labels_of(picture(other), LIP)


def test_a_part_of_a_person() -> None:
    labels = atr("person1")
    trunk = labels[numpy.nonzero(labels == parsing.NECK)[0].max() + 1 : 260]
    assert {parsing.HEAD, 13} & set(numpy.unique(trunk).tolist()) == set()
    assert numpy.array_equal(labels_of(picture(trunk), AUTO), trunk)
    body_parts = numpy.array([[0, 1, 2], [3, 4, 5], [3, 6, 6]], dtype=numpy.uint8)
    with pytest.raises(ValueError, match=r"do not tell the data set \(ATR, LIP\)"):
        labels_of(picture(body_parts), AUTO)


def test_mask_of_a_lip_map_by_default() -> None:
    """The case that covered nothing: no shoes, and nobody had set the labels."""
    labels = numpy.where(numpy.isin(common("person1"), SHOES), 0, common("person1"))
    points = numpy.concatenate([GOLDEN["person1.keypoints"], numpy.ones((18, 1))], axis=1)
    frame = {"people": [{"pose_keypoints_2d": points.ravel().tolist()}], "canvas_width": 384, "canvas_height": 512}
    inputs = ("upper_body", agnostic.CLEAN, AUTO, frame)
    want = LeffaMask.execute(picture(labels).unsqueeze(0), *inputs)[0]
    assert want[0][torch.from_numpy(labels == parsing.UPPER)].all()
    for palette in (CUSTOMARY, parsing.GRAPHONOMY):
        got = LeffaMask.execute(picture(drawn(lip(labels), palette)).unsqueeze(0), *inputs)[0]
        assert torch.equal(got, want)


def test_skin_of_the_chest_is_no_overall() -> None:
    """LIP's 10 is a jumpsuit, CIHP's the skin of neck and chest; both draw it in one colour."""
    numbers = lip(common("person1"))
    assert (labels_of(picture(numpy.where(numbers == 5, 10, numbers)), AUTO)[numbers == 5] == parsing.DRESS).all()
    neck = atr("person1") == parsing.NECK
    skin = drawn(numpy.where(neck, 10, numbers), parsing.GRAPHONOMY)
    assert (labels_of(picture(skin), AUTO)[neck] == parsing.NECK).all()


@pytest.mark.parametrize("palette", [CUSTOMARY, parsing.GRAPHONOMY], ids=["customary", "graphonomy"])
def test_lossy_colours(palette: Any) -> None:
    numbers = lip(common("person3"))
    want = labels_of(picture(numbers), LIP)
    exact = drawn(numbers, palette)
    noise = numpy.random.default_rng(0).integers(-1, 2, exact.shape)
    one_off = (exact.astype(int) + noise).clip(0, 255).astype(numpy.uint8)
    assert numpy.array_equal(labels_of(picture(one_off), AUTO), want)
    assert (labels_of(picture(jpeg(exact)), AUTO) == want).mean() > 0.995


def test_photograph_is_no_map() -> None:
    with Image.open(ROOT / "demo" / "person.jpg") as photograph:
        pixels = numpy.asarray(photograph.convert("RGB"))
    for wrong in (pixels, pixels // 8, pixels.mean(axis=-1).astype(numpy.uint8)):
        with pytest.raises(ValueError, match=r"parsing is no map of labels|nothing to replace|do not tell"):
            LeffaMask.execute(picture(wrong).unsqueeze(0), "upper_body", agnostic.CLEAN, AUTO)
