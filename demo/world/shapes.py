"""Polygons and the similarity maps that place them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (N, 2), x and y
Colour = tuple[int, int, int]
Place = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True)
class Map:
    """x -> matrix @ x + offset, a rotation with a scale and a shift."""

    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]

    def __call__(self, points: Points) -> Points:
        """(N, 2) -> (N, 2)."""
        return points @ self.matrix.T + self.offset

    def after(self, first: Map) -> Map:
        """This map after another one."""
        return Map(self.matrix @ first.matrix, self.matrix @ first.offset + self.offset)

    def inverse(self) -> Map:
        """The map back."""
        matrix = np.linalg.inv(self.matrix).astype(np.float64)
        return Map(matrix, -matrix @ self.offset)

    def affine(self) -> NDArray[np.float64]:
        """(2, 3), as OpenCV has it."""
        return np.concatenate([self.matrix, self.offset[:, None]], 1)


def similarity(scale: float, degrees: float, pivot: Place, target: Place) -> Map:
    """Scales and turns around `pivot`, then brings the pivot to `target`; positive angles turn clockwise on screen."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = scale * np.array([[cos, -sin], [sin, cos]])
    return Map(matrix, np.asarray(target, float) - matrix @ np.asarray(pivot, float))


@dataclass(frozen=True)
class Shape:
    """A filled polygon.

    Attributes:
        points: (N, 2) in sides of the picture.
        colour: before the style changes it.
        part: which part of the body or of the scene it is; see `figure.py`.
        outlined: whether styles with lines draw its outline.
        texture: the flat shirt's coordinates -> the picture's, where the shape is cloth.
        detail: whether it is small, as eyes are, and has to stay readable in styles that dim areas.
    """

    points: Points
    colour: Colour
    part: str = ""
    outlined: bool = True
    texture: Map | None = None
    detail: bool = False


def ellipse(x: float, y: float, width: float, height: float, degrees: float = 0.0, count: int = 28) -> Points:
    """An ellipse by its middle and its radii."""
    angles = np.linspace(0, 2 * math.pi, count, endpoint=False)
    points = np.stack([width * np.cos(angles), height * np.sin(angles)], 1)
    return similarity(1, degrees, (0, 0), (x, y))(points)


def capsule(start: Sequence[float], end: Sequence[float], width: float) -> Points:
    """A thick line with round ends."""
    a, b = np.asarray(start, float), np.asarray(end, float)
    angle = math.atan2(*(b - a)[::-1])
    arc = np.linspace(-math.pi / 2, math.pi / 2, 9)
    round_end = [b + width / 2 * np.array([math.cos(angle + t), math.sin(angle + t)]) for t in arc]
    round_start = [a - width / 2 * np.array([math.cos(angle + t), math.sin(angle + t)]) for t in arc]
    return np.array(round_end + round_start)


def polygon(*points: tuple[float, float]) -> Points:
    """The points as an array."""
    return np.array(points, float)


def box(left: float, top: float, right: float, bottom: float) -> Points:
    """A rectangle."""
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))
