"""A character as polygons, from back to front: legs, torso, arms, head. The figure fills the frame from head to hip."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from . import garment
from .record import Character, Figure
from .shapes import Colour, Map, Points, Shape, box, capsule, ellipse, polygon, similarity
from .styles import PALETTE, mixed

# A figure's own coordinates: x from the middle, y from the top of the ears (0) to the hip (1), for a figure of size 1.
SHIRT_SCALE = 0.72
NECK = (0.0, 0.475)
HEAD = (0.0, 0.3)
UPPER_ARM, LOWER_ARM = 0.14, 0.14
ARM_WIDTH, HAND = 0.095, 0.062
SIDES = {"left": -1, "right": 1}
PINK, DARK = (246, 165, 180), (35, 30, 40)


def placed(figure: Figure) -> Map:
    """The figure's own coordinates -> the picture's."""
    return similarity(figure.size, figure.pose.tilt, (0, 1), (figure.x, figure.y))


def shirt_map() -> Map:
    """The flat shirt's coordinates -> the figure's."""
    return similarity(SHIRT_SCALE, 0, garment.NECK, NECK)


def sleeve_map(figure: Figure, side: str) -> Map:
    """The same for a sleeve, which turns around its shoulder with the upper arm."""
    upper = (figure.pose.left if side == "left" else figure.pose.right)[0]
    shoulder = garment.SHOULDERS[side]
    turn = -SIDES[side] * (upper - garment.SLEEVE_ANGLE)
    return shirt_map().after(similarity(1, turn, shoulder, shoulder))


def joints(figure: Figure) -> dict[str, tuple[float, float]]:
    """Shoulders, elbows, wrists, neck and nose in the figure's own coordinates; left is on the picture's left."""
    found = {"neck": NECK, "nose": HEAD}
    for side, sign in SIDES.items():
        upper, lower = figure.pose.left if side == "left" else figure.pose.right
        x, y = shirt_map()(np.array([garment.SHOULDERS[side]]))[0]
        found[f"{side} shoulder"] = (x, y)
        for joint, length, degrees in (("elbow", UPPER_ARM, upper), ("wrist", LOWER_ARM, lower)):
            x, y = x + sign * length * math.sin(math.radians(degrees)), y + length * math.cos(math.radians(degrees))
            found[f"{side} {joint}"] = (x, y)
    return found


def shapes(figure: Figure) -> list[Shape]:
    """All areas of a figure from back to front, in sides of the picture."""
    place, head = placed(figure), similarity(1, figure.pose.head_tilt, (0, 0.42), (0, 0.42))
    parts = [*_legs(figure.character), *_torso(figure), *_arms(figure)]
    parts += [replace(shape, points=head(shape.points)) for shape in _head(figure.character)]
    return [
        replace(shape, points=place(shape.points), texture=shape.texture and place.after(shape.texture))
        for shape in parts
    ]


def _legs(character: Character) -> list[Shape]:
    colour = PALETTE[character.trousers]
    legs = (("left", box(-0.185, 0.9, 0.0, 1.3)), ("right", box(0.0, 0.9, 0.185, 1.3)))
    return [Shape(points, colour, f"{side} leg") for side, points in legs]


def _torso(figure: Figure) -> list[Shape]:
    colour = PALETTE[figure.character.shirt.colour]
    return [Shape(shirt_map()(garment.TORSO), colour, "torso", texture=shirt_map())]


def _arms(figure: Figure) -> list[Shape]:
    character, at = figure.character, joints(figure)
    body, cloth = PALETTE[character.body], PALETTE[character.shirt.colour]
    parts: list[Shape] = []
    for side in SIDES:
        shoulder, elbow, wrist = (at[f"{side} {joint}"] for joint in ("shoulder", "elbow", "wrist"))
        cloth_map = sleeve_map(figure, side)
        parts += [
            Shape(capsule(elbow, wrist, ARM_WIDTH), body, f"{side} lower arm"),
            Shape(ellipse(*_beyond(elbow, wrist, 0.03), HAND, HAND), body, f"{side} hand"),
            Shape(capsule(shoulder, elbow, ARM_WIDTH), body, f"{side} upper arm"),
            Shape(cloth_map(garment.sleeve(side)), cloth, f"{side} sleeve", texture=cloth_map),
        ]
    return parts


def _beyond(start: tuple[float, float], end: tuple[float, float], distance: float) -> tuple[float, float]:
    """The point that lies so far beyond the end of a line."""
    length = math.dist(start, end)
    return end[0] + distance * (end[0] - start[0]) / length, end[1] + distance * (end[1] - start[1]) / length


def _head(character: Character) -> list[Shape]:
    body = PALETTE[character.body]
    back, face, front = HEADS[character.species](body, PALETTE[character.hair])
    return [*back, Shape(face, body, "head"), *front, *_eyes(character), *_mouth(character)]


Head = tuple[list[Shape], Points, list[Shape]]


def _cat(body: Colour, hair: Colour) -> Head:
    ears = []
    for sign in SIDES.values():
        ears.append(Shape(polygon((sign * 0.225, 0.27), (sign * 0.215, 0.03), (sign * 0.05, 0.14)), body, "ears"))
        ears.append(Shape(polygon((sign * 0.2, 0.2), (sign * 0.195, 0.085), (sign * 0.11, 0.14)), PINK, "ears", False))
    return ears, ellipse(*HEAD, 0.23, 0.18), [_nose()]


def _rabbit(body: Colour, hair: Colour) -> Head:
    ears = []
    for sign in SIDES.values():
        ears.append(Shape(ellipse(sign * 0.11, 0.09, 0.062, 0.16, sign * 10), body, "ears"))
        ears.append(Shape(ellipse(sign * 0.112, 0.1, 0.03, 0.11, sign * 10), PINK, "ears", False))
    return ears, ellipse(*HEAD, 0.2, 0.17), [_nose()]


def _bear(body: Colour, hair: Colour) -> Head:
    inner, ears = mixed(body, (0, 0, 0), 0.35), []
    for sign in SIDES.values():
        ears.append(Shape(ellipse(sign * 0.175, 0.15, 0.085, 0.085), body, "ears"))
        ears.append(Shape(ellipse(sign * 0.175, 0.15, 0.045, 0.045), inner, "ears", False))
    muzzle = Shape(ellipse(0, 0.375, 0.105, 0.075), mixed(body, (255, 255, 255), 0.6), "head", False)
    return ears, ellipse(*HEAD, 0.23, 0.18), [muzzle, _nose()]


def _robot(body: Colour, hair: Colour) -> Head:
    grey = (150, 155, 165)
    antenna = [
        Shape(box(-0.02, 0.05, 0.02, 0.16), grey, "ears"),
        Shape(ellipse(0, 0.06, 0.05, 0.05), (225, 60, 60), "ears"),
        Shape(box(-0.27, 0.25, 0.27, 0.36), grey, "ears"),
    ]
    return antenna, box(-0.23, 0.14, 0.23, 0.46), []


def _girl(body: Colour, hair: Colour) -> Head:
    behind = [Shape(ellipse(0, 0.28, 0.26, 0.22), hair, "hair"), Shape(box(-0.26, 0.28, 0.26, 0.52), hair, "hair")]
    fringe = polygon(
        (-0.2, 0.3), (-0.21, 0.18), (-0.1, 0.1), (0.1, 0.1), (0.21, 0.18), (0.2, 0.3), (0.1, 0.21), (-0.06, 0.19)
    )
    return behind, ellipse(0, 0.31, 0.2, 0.175), [Shape(fringe, hair, "hair", False)]


def _nose() -> Shape:
    return Shape(ellipse(0, 0.35, 0.035, 0.026, count=12), DARK, "head", False, detail=True)


def _eyes(character: Character) -> list[Shape]:
    parts = []
    for sign in SIDES.values():
        x, y = sign * 0.095, 0.285
        if character.eyes == "closed":
            parts.append(Shape(box(x - 0.055, y - 0.002, x + 0.055, y + 0.026), DARK, "head", False, detail=True))
            continue
        if character.eyes == "glasses":
            parts.append(Shape(ellipse(x, y, 0.088, 0.088), (200, 40, 40), "head", False, detail=True))
        parts.append(Shape(ellipse(x, y, 0.062, 0.062), (255, 255, 255), "head", False, detail=True))
        parts.append(
            Shape(ellipse(x - sign * 0.012, y + 0.005, 0.036, 0.036, count=16), DARK, "head", False, detail=True)
        )
    return parts


def _mouth(character: Character) -> list[Shape]:
    if character.species == "robot":
        return [Shape(box(-0.1, 0.385, 0.1, 0.42), DARK, "head", False, detail=True)]
    y = 0.4 if character.species == "girl" else 0.405
    return [
        Shape(
            polygon((-0.07, y), (0.07, y), (0.035, y + 0.035), (-0.035, y + 0.035)),
            (150, 30, 45),
            "head",
            False,
            detail=True,
        )
    ]


HEADS = {"cat": _cat, "rabbit": _rabbit, "bear": _bear, "robot": _robot, "girl": _girl}
