"""Body points, in the forms that common pose nodes give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from numpy.typing import NDArray

from .palette import Labels
from .parsing import BACKGROUND, WRIST_LEFT, WRIST_RIGHT

Points = NDArray[numpy.float64]
Frame = Mapping[str, Any]

THRESHOLD = 0.3  # of the confidence, as in the nodes that draw points
PADDING = 64  # comfyui_controlnet_aux looks at pictures whose sides are multiples of this
LARGEST_SHARE = 2.0  # coordinates up to here are shares of the canvas: no body is that few pixels large


def frames_of(keypoints: Frame | Sequence[Frame] | None) -> list[Frame | None]:
    """One frame for each picture: a list as it comes, a single frame as a list of one, [None] for none.

    Raises:
        ValueError: what is connected holds no frames.
    """
    if keypoints is None:
        return [None]
    frames = [keypoints] if isinstance(keypoints, Mapping) else list(keypoints)
    if not frames or not all(isinstance(frame, Mapping) for frame in frames):
        raise ValueError("keypoints are no OpenPose frames. Connect the keypoints output of a pose detector.")
    return [*frames]


def keypoints_of(frame: Frame, labels: Labels) -> Points:
    """The body points of the person of an OpenPose frame that a parsing map shows.

    Args:
        frame: "people" with "pose_keypoints_2d" (x, y, confidence), "canvas_width" and "canvas_height".
        labels: (H, W), the map.

    Returns:
        (points, 2) x and y in pixels of the map, (0, 0) where a point was not found.

    Raises:
        ValueError: no person in the frame or on the map, no points as far as the wrists, or no canvas size.
    """
    people = [_points(person) for person in frame.get("people") or []]
    if not people:
        raise ValueError("keypoints hold no person. Choose a pose detector that finds the one in the picture.")
    complete = [points for points in people if len(points) > WRIST_LEFT]
    if not complete:
        raise ValueError(
            f"keypoints hold {max(map(len, people))} body points, but the mask needs those of OpenPose, of which the "
            f"wrists are number {WRIST_RIGHT} and {WRIST_LEFT}. Switch on the body in the pose detector."
        )
    placed = [_placed(points, frame, labels.shape) for points in complete]
    fits = [_fit(points, labels) for points in placed]
    if max(fits) == 0 and labels.any() and any(points.any() for points in placed):
        raise ValueError(
            f"keypoints hold {len(people)} {'person' if len(people) == 1 else 'persons'}, but nobody's points lie on "
            "the person that parsing shows. Connect a pose detector and a parser that look at the same picture."
        )
    return placed[fits.index(max(fits))]


def _points(person: Mapping[str, Any]) -> Points:
    """(points, 3) x, y and confidence.

    Raises:
        ValueError: they are of another form.
    """
    try:
        points = numpy.array(person.get("pose_keypoints_2d") or [], dtype=numpy.float64).reshape(-1, 3)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            "keypoints hold something else than x, y and confidence of each body point, in a row. Connect the "
            "keypoints output of a pose detector that gives them as OpenPose does."
        ) from error
    points[~numpy.isfinite(points).all(axis=1)] = 0  # as other detectors write what they have not found
    return points


def _placed(points: Points, frame: Frame, size: tuple[int, ...]) -> Points:
    """(points, 3) on the canvas -> (points, 2) in pixels of a picture (height, width)."""
    found, places = points[:, 2] >= THRESHOLD, points[:, :2]
    canvas = numpy.array([frame.get("canvas_width") or 0, frame.get("canvas_height") or 0], dtype=numpy.float64)
    picture = numpy.array(size[::-1], dtype=numpy.float64)
    if places[found].max(initial=0) > LARGEST_SHARE:
        if not canvas.all():
            raise ValueError(
                "keypoints are in pixels, but canvas_width and canvas_height, the size of the picture that they "
                "belong to, are missing. Add them to the frame, or use another pose detector."
            )
        places = places * (picture / canvas)
    elif canvas.all():
        # Shares of the picture that the detector looked at, which it had padded on the right and at the bottom
        places = places * (numpy.ceil(canvas / PADDING) * PADDING) * (picture / canvas)
    else:
        places = places * picture
    return numpy.where(found[:, None], places, 0.0)


def _fit(points: Points, labels: Labels) -> float:
    """How many of the found points lie on the map's person, less if others do not."""
    columns, rows = points[points.any(axis=1)].astype(int).T
    inside = (rows >= 0) & (rows < labels.shape[0]) & (columns >= 0) & (columns < labels.shape[1])
    hits = int((labels[rows[inside], columns[inside]] != BACKGROUND).sum())
    return hits * hits / max(len(rows), 1)
