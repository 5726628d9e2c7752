"""The world: the same record is the same picture, and captions say what is there and nothing else."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from refattention_demo.world import captions, draw, record, truth
from refattention_demo.world.record import Record


def records(count: int, seed: int = 0) -> list[Record]:
    rng = np.random.default_rng(seed)
    return [record.random_record(rng, 1 + number % 2) for number in range(count)]


def test_the_same_record_is_the_same_picture() -> None:
    first, again = records(6), records(6)
    assert first == again
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(draw.picture(one), draw.picture(other))


@pytest.mark.parametrize("size", [64, 128, 200, 256])
def test_any_size_shows_the_same(size: int) -> None:
    for shown in records(4):
        large = draw.picture(shown, 512)
        expected = cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA).astype(int)
        assert np.abs(draw.picture(shown, size) - expected).mean() < 12


@pytest.mark.parametrize("style", record.STYLES)
def test_every_attribute_can_be_seen_in_every_style(style: str) -> None:
    rng = np.random.default_rng(1)
    shown = replace(record.random_record(rng), style=style)
    figure = shown.figures[0]
    who = figure.character

    def differs(other: record.Character) -> bool:
        changed = replace(shown, figures=(replace(figure, character=other),))
        difference = np.abs(draw.picture(shown).astype(int) - draw.picture(changed)).max(-1)
        return (difference > 8).sum() >= 20

    for field in ("species", "body", "eyes"):
        options = {"species": record.SPECIES, "body": record.BODY_COLOURS, "eyes": record.EYES}[field]
        assert all(differs(replace(who, **{field: value})) for value in options if value != getattr(who, field)), field
    for pattern, logo in (
        ("plain", "none"),
        ("stripes", "none"),
        ("dots", "none"),
        ("plain", "star"),
        ("plain", "ring"),
    ):
        shirt = replace(who.shirt, pattern=pattern, logo=logo)
        assert shirt == who.shirt or differs(replace(who, shirt=shirt)), shirt


def test_a_caption_names_only_what_is_there() -> None:
    rng = np.random.default_rng(0)
    for shown in records(200):
        said = captions.spoken(captions.caption(shown, rng))
        for slot, value in said.items():
            if slot in ("scene", "style"):
                assert value == getattr(shown, slot)
                continue
            place, name = slot.split()
            assert value == _truth(shown.figures[("first", "second").index(place)])[name], (slot, shown)


def test_a_full_caption_names_everything() -> None:
    rng = np.random.default_rng(0)
    for shown in records(100):
        said = captions.spoken(captions.caption(shown, rng, captions.EVERYTHING))
        for place, figure in zip(("first", "second"), shown.figures, strict=False):
            silent = {"eyes": "open", "pattern": "plain", "logo": "none"}
            for name, value in _truth(figure).items():
                if name == "second" and figure.character.shirt.logo == "none":
                    continue
                if silent.get(name) != value:
                    assert said[f"{place} {name}"] == value


def _truth(figure: record.Figure) -> dict[str, str]:
    who = figure.character
    shirt = who.shirt
    return {
        "species": who.species, "body": who.body, "eyes": who.eyes, "pose": figure.pose.name, "shirt": shirt.colour,
        "pattern": shirt.pattern, "logo": shirt.logo, "second": shirt.second,
    }  # fmt: skip


def test_captions_leave_something_out() -> None:
    rng = np.random.default_rng(0)
    named = [len(captions.spoken(captions.caption(shown, rng))) for shown in records(200)]
    assert len(set(named)) > 4


def test_variations_keep_what_they_promise() -> None:
    rng = np.random.default_rng(2)
    first = record.random_record(rng)
    view = record.another_view(first, rng)
    assert view.figures[0].character == first.figures[0].character
    assert view.scene != first.scene and view.style == first.style
    assert record.another_subject(first, rng).style == first.style
    alike = record.look_alikes(rng)
    a, b = (figure.character for figure in alike.figures)
    assert (a.species, a.body, a.eyes, a.hair) == (
        b.species,
        b.body,
        b.eyes,
        b.hair,
    ) and a.shirt.colour != b.shirt.colour
    assert record.twins(rng).are_twins


def test_a_spoiled_logo_changes_the_logo_only() -> None:
    rng = np.random.default_rng(3)
    shown = record.random_record(rng)
    shirt = replace(shown.figures[0].character.shirt, pattern="plain", logo="star")
    shown = replace(record.dressed(shown, shirt), style="flat")
    spoiled = record.spoiled(shown, rng)
    changed = np.abs(draw.picture(shown).astype(int) - draw.picture(spoiled)).max(-1) > 0
    assert changed.sum() > 100
    assert (changed & ~truth.logo(shown)).sum() < 0.02 * changed.sum()
    with pytest.raises(ValueError, match="has none"):
        record.spoiled(record.dressed(shown, replace(shirt, logo="none")), rng)
