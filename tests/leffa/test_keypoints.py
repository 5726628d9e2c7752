"""Body points as pose nodes give them: which count, whose they are, and where they lie on the map."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from refattention.core.leffa import parsing
from refattention.core.leffa.keypoints import frames_of, keypoints_of

SIZE = 200, 100
POINTS = numpy.column_stack([numpy.linspace(30, 60, 18), numpy.linspace(40, 160, 18)])


def labels(left: int = 20, right: int = 70, size: tuple[int, int] = SIZE) -> Any:
    """A map of one person, who stands between two columns."""
    drawn = numpy.zeros(size, dtype=numpy.uint8)
    drawn[20:180, left:right] = parsing.UPPER
    return drawn


def person(points: Any, score: Any = 1.0) -> dict[str, Any]:
    scores = numpy.broadcast_to(score, (len(points), 1))
    return {"pose_keypoints_2d": numpy.concatenate([points, scores], axis=1).ravel().tolist()}


def frame(*people: dict[str, Any], **canvas: int) -> dict[str, Any]:
    return {"people": list(people), **(canvas or {"canvas_width": 100, "canvas_height": 200})}


def test_points_below_the_threshold_are_missing() -> None:
    """As the nodes that draw points have it: 0.3."""
    scores = numpy.full((18, 1), 0.9)
    scores[parsing.WRIST_LEFT], scores[parsing.ELBOW_LEFT] = 0.02, 0.3
    found = keypoints_of(frame(person(POINTS, scores)), labels())
    assert not found[parsing.WRIST_LEFT].any()
    assert numpy.array_equal(found[parsing.ELBOW_LEFT], POINTS[parsing.ELBOW_LEFT])


def test_points_without_numbers_are_missing_and_other_forms_are_named() -> None:
    given = person(POINTS)
    given["pose_keypoints_2d"][3 * parsing.WRIST_LEFT : 3 * parsing.WRIST_LEFT + 3] = [None, None, None]
    found = keypoints_of(frame(given), labels())
    assert not found[parsing.WRIST_LEFT].any() and numpy.array_equal(found[0], POINTS[0])
    for other in ({"pose_keypoints_2d": ["left", "wrist", 1]}, {"pose_keypoints_2d": [1.0, 2.0]}, [1, 2, 3]):
        with pytest.raises(ValueError, match="keypoints hold something else than x, y and confidence"):
            keypoints_of(frame(other), labels())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_person_on_the_map_is_taken(order: tuple[int, ...]) -> None:
    shown, other, hidden = POINTS, POINTS + numpy.array([45, 0]), numpy.zeros((18, 2))
    people = [person(shown), person(other), person(hidden, 0.0)]
    assert numpy.array_equal(keypoints_of(frame(*(people[i] for i in order)), labels()), shown)


def test_few_points_on_the_map_win_over_many_beside_it() -> None:
    scores = numpy.zeros((18, 1))
    scores[:8] = 1
    beside = POINTS + numpy.array([30, 0])  # partly on the person
    found = keypoints_of(frame(person(beside), person(POINTS, scores)), labels())
    assert numpy.array_equal(found[:8], POINTS[:8])


def test_shares_belong_to_the_padded_canvas() -> None:
    """comfyui_controlnet_aux: the detector saw 128 x 256, the frame says 100 x 200."""
    shares = frame(person(POINTS / [128, 256]))
    assert numpy.allclose(keypoints_of(shares, labels()), POINTS)
    # The map at twice the size
    large = labels().repeat(2, 0).repeat(2, 1)
    assert numpy.allclose(keypoints_of(shares, large), POINTS * 2)
    whole = frame(person(POINTS / [64, 192]), canvas_width=64, canvas_height=192)
    assert numpy.allclose(keypoints_of(whole, labels(size=(192, 64))), POINTS)


def test_missing_canvas() -> None:
    nothing = {"people": [person(POINTS / SIZE[::-1])]}
    assert numpy.allclose(keypoints_of(nothing, labels()), POINTS)
    with pytest.raises(ValueError, match="in pixels, but canvas_width and canvas_height"):
        keypoints_of({"people": [person(POINTS)]}, labels())


def test_points_of_another_picture_are_refused() -> None:
    with pytest.raises(ValueError, match="2 persons, but nobody's points lie on the person"):
        keypoints_of(frame(person(POINTS), person(POINTS + 1)), labels(80, 100))


def test_a_single_frame_and_wrong_things() -> None:
    one = frame(person(POINTS))
    assert frames_of(one) == frames_of([one]) == [one]
    assert frames_of(None) == [None]
    for wrong in ([], "points", [[one]]):
        with pytest.raises(ValueError, match="no OpenPose frames"):
            frames_of(wrong)  # type: ignore[arg-type]


def test_points_as_pairs_of_lists() -> None:
    nested = {"pose_keypoints_2d": [[x, y, 1] for x, y in POINTS.tolist()]}
    assert numpy.allclose(keypoints_of(frame(nested), labels()), POINTS)
    assert numpy.allclose(keypoints_of(frame({"pose_keypoints_2d": None}, nested), labels()), POINTS)
