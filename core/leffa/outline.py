"""Blobs as filled polygons through their dominant points.

The official mask rule for virtual_tryon draws its blob that way, with OpenCV: the border of the blob is thinned to the
points that Teh and Chin's algorithm (IEEE PAMI 11(8), 1989) finds dominant, by the 1-curvature, and the polygon through
them is filled. So corners are cut by a pixel or two. This module gives the same pixels without OpenCV.
"""

from __future__ import annotations

from math import ceil, floor

import numpy
from numpy.typing import NDArray

Mask = NDArray[numpy.bool_]
Point = tuple[int, int]  # x, y

# Steps along a border by code: right, then counter-clockwise as seen on the screen
STEPS: tuple[Point, ...] = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))
ROUNDING = 1e-6


def border(blob: Mask) -> tuple[list[Point], list[int]]:
    """Follows the outer border of a blob counter-clockwise, from its first pixel in reading order.

    Args:
        blob: (H, W), one 8-connected blob that leaves the frame free.

    Returns:
        the pixels, and the code of the step from each to the next; no step for a blob of one pixel.
    """
    y, x = (int(v) for v in numpy.argwhere(blob)[0])
    start = (x, y)
    code = next((c for c in (3, 2, 1, 0, 7, 6, 5) if blob[y + STEPS[c][1], x + STEPS[c][0]]), None)
    if code is None:
        return [start], []
    before_start = _step(start, code)
    pixels, codes = [], []
    here = start
    while True:
        code = next(c % 8 for c in range(code + 1, code + 9) if blob[_step(here, c % 8)[::-1]])
        pixels.append(here)
        codes.append(code)
        there = _step(here, code)
        if there == start and here == before_start:
            return pixels, codes
        here, code = there, (code + 4) % 8


def _step(pixel: Point, code: int) -> Point:
    return pixel[0] + STEPS[code][0], pixel[1] + STEPS[code][1]


def dominant_points(pixels: list[Point], codes: list[int]) -> list[Point]:
    """The dominant points of a closed border, as OpenCV's CHAIN_APPROX_TC89_L1 finds them."""
    if not codes:
        return pixels
    curve = _Curve(pixels, codes)
    curve.suppress_weaker()
    curve.drop_unsupported()
    curve.thin_runs()
    return curve.points()


class _Curve:
    """The pixels of a border, with curvature and region of support, of which more and more are dropped."""

    def __init__(self, pixels: list[Point], codes: list[int]) -> None:
        self._pixels = list(pixels)
        turns = [abs(code - codes[i - 1]) for i, code in enumerate(codes)]
        self._curvature = [min(turn, 8 - turn) for turn in turns]
        self._kept = [curvature > 0 for curvature in self._curvature]
        self._support = [self._region_of_support(i) if kept else 0 for i, kept in enumerate(self._kept)]

    def points(self) -> list[Point]:
        """What is left."""
        return [pixel for pixel, kept in zip(self._pixels, self._kept, strict=True) if kept]

    def _region_of_support(self, i: int) -> int:
        """How far to both sides the chord keeps growing, and its distance from the point in relation to it."""
        size = len(self._pixels)
        x, y = self._pixels[i]
        length = distance = 0
        for k in range(1, size + 1):
            x1, y1 = self._pixels[(i - k) % size]
            x2, y2 = self._pixels[(i + k) % size]
            dx, dy = x2 - x1, y2 - y1
            new_length, new_distance = dx * dx + dy * dy, (x - x1) * dy - (y - y1) * dx
            change = distance * new_length - new_distance * length
            falls = (distance > 0 and change <= 0) or (distance < 0 and change >= 0)
            if k > 1 and (length >= new_length or falls):
                return k - 1
            length, distance = new_length, new_distance
        return size

    def suppress_weaker(self) -> None:
        """Drops points with a stronger one within half their region of support."""
        for i in self._indices():
            reach = range(1, self._support[i] // 2 + 1)
            if any(max(self._beside(i, offset)) > self._curvature[i] for offset in reach):
                self._drop(i)

    def drop_unsupported(self) -> None:
        """Drops points with the least region of support that are not stronger than both neighbours."""
        for i in self._indices():
            if self._support[i] == 1 and self._curvature[i] <= max(self._beside(i, 1)):
                self._drop(i)

    def _indices(self) -> list[int]:
        return [i for i, kept in enumerate(self._kept) if kept]

    def _beside(self, i: int, offset: int) -> tuple[int, int]:
        """Curvature on both sides."""
        size = len(self._pixels)
        return self._curvature[(i - offset) % size], self._curvature[(i + offset) % size]

    def _drop(self, i: int) -> None:
        self._kept[i], self._curvature[i] = False, 0

    def thin_runs(self) -> None:
        """Leaves of neighbouring pixels the stronger one of two, or the ends of a longer run."""
        start = 0
        if self._curvature[0] and self._curvature[-1]:
            if all(self._curvature):
                return
            start = self._join_ends()
        before = previous = start
        run = 1
        for i in range(start, len(self._kept)):
            if not self._kept[i]:
                continue
            if i + 1 < len(self._kept) and self._kept[i + 1]:
                run += 1
            else:
                if run == 2:
                    self._kept[previous if self._rank(previous) < self._rank(i) else i] = False
                elif run > 2:
                    # OpenCV looks for the run behind the last one; so the first run keeps its second point, too.
                    self._clear(self._after(before) + 1, i)
                before, run = i, 1
            previous = i

    def _rank(self, i: int) -> tuple[int, int]:
        return self._curvature[i], -self._support[i]

    def _join_ends(self) -> int:
        """The runs at both ends are one: leaves one point of each. Returns where the other runs begin."""
        size = len(self._kept)
        first_end = next(i for i in range(size) if not self._curvature[i + 1])
        last_begin = next((i + 1 for i in range(size - 2, 0, -1) if not self._curvature[i]), 1)
        self._clear(last_begin + 1, size)
        for i in (*range(first_end), *range(last_begin + 1, size)):
            self._curvature[i] = 0
        if first_end > 0 or last_begin < size - 1:
            return first_end
        # Behind the last point as well, so that these two are compared
        self._pixels.append(self._pixels[0])
        self._curvature.append(self._curvature[0])
        self._support.append(self._support[0])
        self._kept.append(True)
        return self._after(0)

    def _after(self, i: int) -> int:
        return next(j for j in range(i + 1, len(self._kept)) if self._kept[j])

    def _clear(self, start: int, end: int) -> None:
        self._kept[start:end] = [False] * len(self._kept[start:end])


def area(points: list[Point]) -> float:
    """Area of a polygon."""
    x, y = numpy.array(points, dtype=numpy.int64).T
    return abs(int((x * numpy.roll(y, -1) - y * numpy.roll(x, -1)).sum())) / 2


def filled(points: list[Point], shape: tuple[int, int]) -> Mask:
    """A polygon with its lines: everything inside by the even-odd rule, and the nearest pixels along each edge.

    Args:
        points: corners in order, none outside the picture.
        shape: (H, W).
    """
    mask = numpy.zeros(shape, dtype=bool)
    crossings: dict[int, list[float]] = {}
    for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
        columns, rows = _line((x1, y1), (x2, y2))
        mask[rows, columns] = True
        for y in range(min(y1, y2), max(y1, y2)):  # without the lower end, which belongs to the next edge
            crossings.setdefault(y, []).append(x1 + (x2 - x1) * (y - y1) / (y2 - y1))
    for y, places in crossings.items():
        places.sort()
        for left, right in zip(places[::2], places[1::2], strict=True):
            mask[y, ceil(left - ROUNDING) : floor(right + ROUNDING) + 1] = True
    return mask


def _line(one: Point, other: Point) -> tuple[NDArray[numpy.int64], NDArray[numpy.int64]]:
    """Columns and rows of the pixels along a line, half-way cases towards its left end."""
    (x1, y1), (x2, y2) = sorted((one, other))
    dx, dy = x2 - x1, y2 - y1
    steps = numpy.arange(max(dx, abs(dy)) + 1)
    if not len(steps[1:]):
        return numpy.array([x1]), numpy.array([y1])

    def minor(total: int) -> NDArray[numpy.int64]:
        # ceil(step * total / length - 1/2) in whole numbers
        length = len(steps) - 1
        return -((length - 2 * steps * total) // (2 * length))

    if dx >= abs(dy):
        return x1 + steps, y1 + numpy.sign(dy) * minor(abs(dy))
    return x1 + minor(dx), y1 + numpy.sign(dy) * steps
