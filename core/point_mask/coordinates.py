"""Points as JSON text, in the form that KJNodes' point editor and ComfyUI's SAM3 nodes use."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

Point = tuple[int, int]
Points = list[Point]

# The names of the inputs, which messages quote.
POSITIVE, NEGATIVE = "positive_coords", "negative_coords"

# More do not come from clicks, and every point costs time.
MOST_POINTS = 1000
# Beyond any picture, infinity included.
LARGEST = 1e9
EXAMPLE = '[{"x": 120, "y": 80}]'


def parse(text: str, name: str) -> list[Points]:
    """Reads points from JSON: one list, or one list for each frame.

    Args:
        text: `[{"x": 10, "y": 20}, ...]` in pixels, or a list of such lists; empty text means no points.
        name: of the input, for messages.

    Returns:
        One list of (x, y) per frame, a single list when the text holds no frames. Fractions are cut off: a pixel
        reaches from its coordinate to the next.

    Raises:
        ValueError: the text is no JSON, or JSON of another form; says where. Also for shares of the picture in place
            of pixels.
    """
    value = _load(text, name)
    if not isinstance(value, list):
        raise ValueError(f"{name} holds {_kind(value)}, but a list of points is needed, such as {EXAMPLE}.")
    if value and all(isinstance(item, list) for item in value):
        frames = [_points(items, f"{name}, frame {frame}") for frame, items in enumerate(value, 1)]
    else:
        frames = [_points(value, name)]
    _require_pixels([each for points in frames for point in points for each in point], name)
    return [[(math.floor(x), math.floor(y)) for x, y in points] for points in frames]


def dump(frames: Sequence[Points]) -> str:
    """The text that `parse` reads as these points."""
    lists = [[{"x": x, "y": y} for x, y in points] for points in frames]
    return json.dumps(lists[0] if len(lists) == 1 else lists)


def for_frames(frames: list[Points], count: int, name: str) -> list[Points]:
    """One list of points for each of `count` pictures; a single list serves all.

    Raises:
        ValueError: neither one list nor one for each picture.
    """
    if len(frames) == 1:
        return frames * count
    if len(frames) != count:
        raise ValueError(
            f"{name} holds {len(frames)} lists of points, but image has {count} "
            f"frame{'s' if count > 1 else ''}. Give one list for all frames, or one for each."
        )
    return frames


def require_inside(frames: Sequence[Points], width: int, height: int, name: str) -> None:
    """Refuses points that are not on the picture.

    Raises:
        ValueError: some points lie outside; lists them, with the size of the picture.
    """
    outside = sorted({(x, y) for points in frames for x, y in points if not (0 <= x < width and 0 <= y < height)})
    if outside:
        listed = ", ".join(f"({x}, {y})" for x, y in outside[:5]) + (", ..." if len(outside) > 5 else "")
        raise ValueError(
            f"{name} has points outside the picture of {width} x {height} pixels: {listed}. "
            f"x goes from 0 to {width - 1}, y from 0 to {height - 1}."
        )


def _require_pixels(numbers: Sequence[float], name: str) -> None:
    if any(each != int(each) for each in numbers) and all(0 <= each <= 1 for each in numbers):
        raise ValueError(
            f"{name} holds numbers from 0 to 1 with fractions, which are shares of the picture, but pixels are needed. "
            "Switch off `normalize` in the node that the points come from."
        )


def _load(text: str, name: str) -> Any:
    if not text.strip():
        return []
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{name} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}. "
            f"Points look like {EXAMPLE}."
        ) from None
    except (ValueError, RecursionError):
        # A number of thousands of digits, or thousands of brackets.
        raise ValueError(f"{name} is not a list of points. Points look like {EXAMPLE}.") from None


def _points(items: list[Any], place: str) -> list[tuple[float, float]]:
    if len(items) > MOST_POINTS:
        raise ValueError(f"{place} has {len(items)} points, but at most {MOST_POINTS} can be used.")
    return [_point(item, f"{place}: point {number}") for number, item in enumerate(items, 1)]


def _point(item: Any, place: str) -> tuple[float, float]:
    if not isinstance(item, dict):
        raise ValueError(f"{place} is {_kind(item)}, but an object is needed, such as {EXAMPLE[1:-1]}.")
    if missing := [name for name in ("x", "y") if name not in item]:
        raise ValueError(f"{place} has no {' and no '.join(missing)}. Points look like {EXAMPLE}.")
    return _number(item["x"], f"{place}: x"), _number(item["y"], f"{place}: y")


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) > LARGEST:
        raise ValueError(f"{place} is {_kind(value)}, but a number of pixels is needed.")
    return value


def _kind(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
