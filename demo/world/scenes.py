"""Backgrounds of a few large areas."""

from __future__ import annotations

from collections.abc import Callable

from numpy.random import Generator

from .shapes import Shape, box, ellipse, polygon

WORDS = {
    "beach": "on the beach",
    "forest": "in the forest",
    "city": "in the city at night",
    "snow": "in the snow",
    "room": "in a room",
}


def shapes(scene: str, rng: Generator) -> list[Shape]:
    """The areas of a scene from back to front."""
    return SCENES[scene](rng)


def _beach(rng: Generator) -> list[Shape]:
    horizon = rng.uniform(0.42, 0.5)
    return [
        Shape(box(-0.1, -0.1, 1.1, horizon), (130, 205, 250), outlined=False),
        Shape(box(-0.1, horizon, 1.1, 1.1), (45, 135, 215)),
        Shape(box(-0.1, horizon + 0.16, 1.1, 1.1), (240, 212, 145)),
        Shape(ellipse(_side(rng, 0.13), rng.uniform(0.12, 0.18), 0.09, 0.09), (255, 222, 80)),
    ]


def _forest(rng: Generator) -> list[Shape]:
    areas = [
        Shape(box(-0.1, -0.1, 1.1, 0.62), (165, 215, 195), outlined=False),
        Shape(box(-0.1, 0.62, 1.1, 1.1), (95, 140, 65)),
    ]
    for x in (rng.uniform(0.02, 0.14), rng.uniform(0.86, 0.98), rng.uniform(0.35, 0.65)):
        top = rng.uniform(0.02, 0.12)
        areas.append(Shape(box(x - 0.03, 0.5, x + 0.03, 0.7), (105, 70, 45)))
        areas.append(Shape(polygon((x - 0.17, 0.58), (x, top), (x + 0.17, 0.58)), (35, 110, 65)))
    return areas


def _city(rng: Generator) -> list[Shape]:
    areas = [
        Shape(box(-0.1, -0.1, 1.1, 1.1), (28, 24, 68), outlined=False),
        Shape(ellipse(_side(rng, 0.36), rng.uniform(0.08, 0.12), 0.06, 0.06), (240, 235, 200)),
    ]
    for x in (-0.02, 0.2, 0.58, 0.8):
        top = rng.uniform(0.16, 0.34)
        areas.append(Shape(box(x, top, x + 0.22, 0.85), (62, 60, 105)))
        for row in range(3):
            for column in range(2):
                if rng.random() < 0.75:
                    left, upper = x + 0.035 + 0.09 * column, top + 0.05 + 0.13 * row
                    areas.append(
                        Shape(box(left, upper, left + 0.06, upper + 0.07), (250, 215, 110), outlined=False, detail=True)
                    )
    areas.append(Shape(box(-0.1, 0.8, 1.1, 1.1), (50, 50, 62)))
    return areas


def _snow(rng: Generator) -> list[Shape]:
    areas = [
        Shape(box(-0.1, -0.1, 1.1, 1.1), (165, 190, 220), outlined=False),
    ]
    for x in (rng.uniform(0.0, 0.2), rng.uniform(0.8, 1.0)):
        areas.append(Shape(polygon((x - 0.35, 0.66), (x, rng.uniform(0.2, 0.3)), (x + 0.35, 0.66)), (125, 135, 170)))
    areas.append(Shape(box(-0.1, 0.62, 1.1, 1.1), (248, 250, 255)))
    for column in range(6):
        x, y = 0.08 + 0.168 * column, rng.uniform(0.04, 0.55)
        areas.append(Shape(ellipse(x, y, 0.022, 0.022, count=12), (255, 255, 255), outlined=False))
    return areas


def _room(rng: Generator) -> list[Shape]:
    wall = ((232, 205, 165), (190, 215, 180), (215, 195, 225))[int(rng.integers(3))]
    left = _side(rng, 0.16) - 0.13
    top = rng.uniform(0.12, 0.2)
    frame, glass = box(left, top, left + 0.26, top + 0.32), box(left + 0.03, top + 0.03, left + 0.23, top + 0.29)
    return [
        Shape(box(-0.1, -0.1, 1.1, 0.75), wall, outlined=False),
        Shape(box(-0.1, 0.75, 1.1, 1.1), (150, 98, 62)),
        Shape(frame, (252, 250, 245)),
        Shape(glass, (130, 200, 245), outlined=False),
    ]


def _side(rng: Generator, distance: float) -> float:
    """A place at that distance from the left or from the right border."""
    return distance if rng.random() < 0.5 else 1 - distance


SCENES: dict[str, Callable[[Generator], list[Shape]]] = {
    "beach": _beach,
    "forest": _forest,
    "city": _city,
    "snow": _snow,
    "room": _room,
}
