"""Points from text: every form that is accepted, and a clear word about everything else."""

from __future__ import annotations

import json
import random

import pytest
from refattention.core.point_mask.coordinates import dump, for_frames, parse, require_inside


@pytest.mark.parametrize(
    ("text", "points"),
    [
        pytest.param("[]", [[]], id="none"),
        pytest.param(" \n", [[]], id="empty-text"),
        pytest.param('[{"x": 3, "y": 4}]', [[(3, 4)]], id="one"),
        pytest.param('[{"x": 3.99, "y": 0.5, "label": "a"}]', [[(3, 0)]], id="fractions-and-more-keys"),
        pytest.param('[{"x": 1, "y": 0}, {"x": 0, "y": 1}]', [[(1, 0), (0, 1)]], id="the-first-pixels"),
        pytest.param('[{"x": 0.5, "y": 0.25}, {"x": 1.5, "y": 0}]', [[(0, 0), (1, 0)]], id="small-fractions"),
        pytest.param('[{"x": -0.5, "y": 1e3}]', [[(-1, 1000)]], id="negative-fraction"),
        pytest.param('[[{"x": 1, "y": 2}], [], [{"x": 3, "y": 4}]]', [[(1, 2)], [], [(3, 4)]], id="frames"),
    ],
)
def test_accepted(text: str, points: list[list[tuple[int, int]]]) -> None:
    assert parse(text, "coords") == points
    assert parse(dump(points), "coords") == points


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param('[{"x": 1, "y": 2}', "not valid JSON: .* line 1, column 18", id="cut-off"),
        pytest.param('[{"x": 1,\n "y" 2}]', "not valid JSON: .* line 2, column 6", id="second-line"),
        pytest.param('{"x": 1, "y": 2}', "holds an object, but a list", id="object"),
        pytest.param("7", "holds 7, but a list", id="number"),
        pytest.param("[{}]", "point 1 has no x and no y", id="empty-object"),
        pytest.param("[1, 2]", "point 1 is 1, but an object", id="bare-numbers"),
        pytest.param('[{"x": 1, "y": 2}, {"x": 1}]', "point 2 has no y", id="no-y"),
        pytest.param('[{"x": "1", "y": 2}]', 'point 1: x is "1", but a number', id="text"),
        pytest.param('[{"x": 0.31, "y": 0.7}, {"x": 0, "y": 1}]', "are shares of the picture, but pixels", id="shares"),
        pytest.param('[[{"x": 1, "y": 1}], [{"x": 0.5, "y": 1.0}]]', "Switch off `normalize`", id="shares-in-frames"),
        pytest.param('[{"x": 1, "y": null}]', "point 1: y is null, but a number", id="null"),
        pytest.param('[{"x": true, "y": 2}]', "point 1: x is true, but a number", id="boolean"),
        pytest.param('[{"x": NaN, "y": 2}]', "point 1: x is NaN, but a number", id="nan"),
        pytest.param('[{"x": 1e999, "y": 2}]', "point 1: x is Infinity, but a number", id="infinity"),
        pytest.param('[{"x": 1' + "0" * 400 + ', "y": 2}]', "point 1: x is 1000", id="huge"),
        pytest.param('[{"x": 1' + "0" * 5000 + ', "y": 2}]', "not a list of points", id="too-many-digits"),
        pytest.param("[" * 100_000, "not a list of points", id="deep"),
        pytest.param('[[{"x": 1, "y": 2}], [{"x": 1}]]', ", frame 2: point 1 has no y", id="frame"),
        pytest.param('[[{"x": 1, "y": 2}], {"x": 1, "y": 2}]', "point 1 is a list", id="mixed"),
        pytest.param(json.dumps([{"x": 1, "y": 1}] * 1001), "has 1001 points, but at most 1000", id="crowd"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^coords.*{message}") as caught:
        parse(text, "coords")
    assert len(str(caught.value)) < 300


def test_frames() -> None:
    assert for_frames([[(1, 2)]], 3, "coords") == [[(1, 2)]] * 3
    assert for_frames([[], [(1, 2)]], 2, "coords") == [[], [(1, 2)]]
    with pytest.raises(ValueError, match="coords holds 2 lists of points, but image has 3 frames"):
        for_frames([[], []], 3, "coords")


def test_points_outside_are_listed_with_the_size() -> None:
    require_inside([[(0, 0), (63, 47)]], 64, 48, "coords")
    with pytest.raises(ValueError, match=r"64 x 48 pixels: \(-1, 0\), \(0, 48\), \(64, 0\)\. x goes from 0 to 63"):
        require_inside([[(64, 0), (0, 48), (5, 5)], [(-1, 0)]], 64, 48, "coords")


PIECES = ["[", "]", "{", "}", '"x"', '"y"', ":", ",", "1", "-3.5", "1e999", "NaN", "null", "true", '"', "\\", "\ud800",
          "\x00", "é", " ", "0" * 5000, "[" * 2000, '{"x": 3, "y": 4}', '[{"x": 3, "y": 4}]']  # fmt: skip


def test_10000_random_texts() -> None:
    rng, accepted = random.Random(5), 0
    for _ in range(10_000):
        text = "".join(rng.choices(PIECES, k=rng.randint(0, 9)))
        if rng.random() < 0.3:
            text = f"[{text}]"
        try:
            parse(text, "coords")
            accepted += 1
        except ValueError as error:
            assert str(error).startswith("coords") and len(str(error)) < 400
    assert accepted > 200
