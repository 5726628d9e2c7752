"""A shirt laid flat. What a figure wears is this very picture, moved: so the place of each pixel on it is known."""

from __future__ import annotations

import itertools
import math

import numpy as np

from .record import Shirt
from .shapes import Points, Shape, box, capsule, ellipse, polygon, similarity
from .styles import PALETTE

# Flat coordinates: the unit square of the garment's picture.
NECK = (0.5, 0.2)
SHOULDERS = {"left": (0.24, 0.285), "right": (0.76, 0.285)}
SLEEVE_ANGLE = 55.0
SLEEVE_LENGTH, SLEEVE_WIDTH = 0.15, 0.2
LOGO_CENTRE, LOGO_RADIUS = (0.5, 0.52), 0.2
STRIPE, CHECK, DOT, PATCH = 0.17, 0.15, 0.2, 0.1
CONTRAST = 300.0  # of a quilt, steps of 255 from one side of the unit square to the other

TORSO = polygon(
    (0.24, 0.21), (0.4, 0.185), (0.5, 0.22), (0.6, 0.185), (0.76, 0.21), (0.79, 0.4), (0.79, 0.84), (0.21, 0.84),
    (0.21, 0.4),
)  # fmt: skip


def sleeve(side: str) -> Points:
    """The outline of a sleeve on the flat shirt."""
    x, y = SHOULDERS[side]
    sign, angle = (-1 if side == "left" else 1), math.radians(SLEEVE_ANGLE)
    end = (x + sign * SLEEVE_LENGTH * math.sin(angle), y + SLEEVE_LENGTH * math.cos(angle))
    return capsule((x, y), end, SLEEVE_WIDTH)


def decoration(shirt: Shirt) -> list[Shape]:
    """Pattern and logo on the whole square, to be cut out by the shirt's outlines."""
    if shirt.quilt is not None:
        return _patches(shirt.quilt)
    shapes = [Shape(points, PALETTE[shirt.second], outlined=False, detail=True) for points in _pattern(shirt.pattern)]
    if shirt.logo == "none":
        return shapes
    if shirt.pattern != "plain":
        shapes.append(
            Shape(ellipse(*LOGO_CENTRE, LOGO_RADIUS * 1.2, LOGO_RADIUS * 1.2), PALETTE[shirt.colour], outlined=False)
        )
    return [*shapes, *_logo(shirt)]


def _pattern(name: str) -> list[Points]:
    steps = np.arange(-0.02, 1, 0.01)
    if name == "stripes":
        return [box(-0.1, y, 1.1, y + STRIPE / 2) for y in steps[:: round(STRIPE * 100)]]
    if name == "checks":
        grid = steps[:: round(CHECK * 50)]
        return [
            box(x, y, x + CHECK / 2, y + CHECK / 2)
            for row, y in enumerate(grid)
            for column, x in enumerate(grid)
            if (row + column) % 2
        ]
    if name == "dots":
        return [
            ellipse(0.5 + DOT * (column + (row % 2) / 2), 0.13 + 0.8 * DOT * row, 0.27 * DOT, 0.27 * DOT, count=12)
            for row in range(6)
            for column in range(-3, 3)
        ]
    return []


def _patches(seed: int) -> list[Shape]:
    """Squares whose colours change along two directions of colour, one across and one down the shirt."""
    directions, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 2)))
    shapes = []
    for x, y in itertools.product(np.arange(0, 1, PATCH), repeat=2):
        colour = 128 + CONTRAST * directions @ (x + PATCH / 2 - 0.5, y + PATCH / 2 - 0.5)
        red, green, blue = (int(channel) for channel in np.clip(colour.round(), 0, 255))
        shapes.append(Shape(box(x, y, x + PATCH, y + PATCH), (red, green, blue), outlined=False))
    return shapes


def _logo(shirt: Shirt) -> list[Shape]:
    outline = GLYPHS[shirt.logo]
    if shirt.spoiled is not None:
        outline = _garbled(outline, shirt.spoiled)
    place = similarity(LOGO_RADIUS, 0, (0, 0), LOGO_CENTRE)
    shapes = [Shape(place(outline), PALETTE[shirt.second])]
    if shirt.logo == "ring" and shirt.spoiled is None:
        shapes.append(Shape(place(ellipse(0, 0, 0.45, 0.45)), PALETTE[shirt.colour]))
    return shapes


def _garbled(outline: Points, seed: int) -> Points:
    """The outline with its points pulled about: still a blot of the same size, no longer a sign."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * math.pi, 9))
    radii = rng.uniform(0.35, 1.1, 9) * np.abs(outline).max()
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)


def _star() -> Points:
    angles = np.arange(10) * math.pi / 5
    radii = np.where(np.arange(10) % 2, 0.48, 1.1)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], 1)


def _heart() -> Points:
    t = np.linspace(0, 2 * math.pi, 28, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([np.sin(t) ** 3, -y / 16], 1)


GLYPHS: dict[str, Points] = {
    "star": _star(),
    "heart": _heart(),
    "ring": ellipse(0, 0, 1, 1),
    "cross": polygon(
        (-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33), (0.33, 1), (-0.33, 1),
        (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33),
    ),
    "bolt": polygon((0.3, -1.1), (-0.75, 0.2), (-0.1, 0.2), (-0.35, 1.1), (0.75, -0.3), (0.1, -0.3), (0.6, -1.1)),
}  # fmt: skip
