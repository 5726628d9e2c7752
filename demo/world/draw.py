"""Records to pictures."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from . import figure as figures
from . import garment, scenes
from .record import Record, Shirt
from .shapes import Map, Points, Shape
from .styles import PALETTE, STYLES, Style

Picture = NDArray[np.uint8]  # (H, W, 3), RGB
SIZE = 128
# OpenCV's fixed point: sixteenths of a pixel
BITS = 4


def picture(record: Record, size: int = SIZE) -> Picture:
    """(size, size, 3) RGB. The same record gives the same picture."""
    style = STYLES[record.style]
    canvas = np.zeros((size, size, 3), np.uint8)
    for shape in scenes.shapes(record.scene, np.random.default_rng(record.seed)):
        paint(canvas, shape, style)
    for figure in record.figures:
        texture = cloth(figure.character.shirt, style, size, figure.size)
        for shape in figures.shapes(figure):
            paint(canvas, shape, style, texture, figure.size)
    return _washed(canvas, record.seed) if style.wash else canvas


def flat_garment(shirt: Shirt, size: int = SIZE) -> Picture:
    """(size, size, 3) RGB: the shirt laid flat on light grey, in the flat style."""
    style = STYLES["flat"]
    canvas = np.full((size, size, 3), 215, np.uint8)
    texture = cloth(shirt, style, size, 1.0)
    everywhere = Map(np.eye(2), np.zeros(2))
    for outline in (garment.sleeve("left"), garment.sleeve("right"), garment.TORSO):
        paint(canvas, Shape(outline, PALETTE[shirt.colour], texture=everywhere), style, texture)
    return canvas


def cloth(shirt: Shirt, style: Style, size: int, scale: float) -> Picture | None:
    """The shirt's decoration over the whole square, (size, size, 3); None if it is plain."""
    decoration = garment.decoration(shirt)
    if not decoration:
        return None
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = style.fill(PALETTE[shirt.colour])
    for shape in decoration:
        paint(canvas, shape, style, None, 1 / figures.SHIRT_SCALE)
    return canvas


def paint(canvas: Picture, shape: Shape, style: Style, texture: Picture | None = None, scale: float = 1.0) -> None:
    """Paints one area in a style, in place. `scale` thickens or thins its outline."""
    if shape.texture is None or texture is None:
        fill(canvas, shape.points, style.fill(shape.colour, shape.detail))
    else:
        _fill_with_cloth(canvas, shape.points, texture, shape.texture)
    if style.width and shape.outlined:
        width = max(1, round(style.width * len(canvas) * max(scale, 0.8)))
        points = [_fixed(shape.points, len(canvas))]
        cv2.polylines(canvas, points, True, style.outline(shape.colour), width, cv2.LINE_AA, BITS)


def fill(canvas: NDArray[np.uint8], points: Points, colour: tuple[int, ...] | int, smooth: bool = True) -> None:
    """Fills a polygon in place; not `smooth` leaves no value in between, as a map of labels needs it."""
    cv2.fillPoly(canvas, [_fixed(points, len(canvas))], colour, cv2.LINE_AA if smooth else cv2.LINE_8, BITS)


def _fill_with_cloth(canvas: Picture, points: Points, texture: Picture, place: Map) -> None:
    size = len(canvas)
    left, top = np.clip(np.floor(points.min(0) * size).astype(int) - 1, 0, size)
    right, bottom = np.clip(np.ceil(points.max(0) * size).astype(int) + 2, 0, size)
    if right <= left or bottom <= top:
        return
    corner = np.array([left, top])
    # pixel centres lie half a pixel in
    affine = Map(place.matrix, size * place.offset - corner + 0.5 * place.matrix.sum(1) - 0.5).affine()
    moved = cv2.warpAffine(
        texture, affine, (right - left, bottom - top), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    cover = np.zeros((size, size), np.uint8)
    fill(cover, points, 255)
    window = canvas[top:bottom, left:right]
    share = cover[top:bottom, left:right, None].astype(np.uint16)
    window[:] = ((moved * share + window * (255 - share) + 127) // 255).astype(np.uint8)


def _fixed(points: Points, size: int) -> NDArray[np.int32]:
    # OpenCV's integer coordinates are pixel centres.
    return np.round((points * size - 0.5) * (1 << BITS)).astype(np.int32)


def _washed(canvas: Picture, seed: int) -> Picture:
    soft = cv2.GaussianBlur(canvas, (0, 0), len(canvas) / 100)
    return cv2.multiply(soft, _paper(seed % 16, len(canvas)), scale=1 / 255).astype(np.uint8)


@lru_cache(maxsize=64)
def _paper(seed: int, size: int) -> Picture:
    """How much light the paper sends back: uneven, in large soft blots."""
    coarse = np.random.default_rng(seed).uniform(0.86, 1, (5, 5)).astype(np.float32)
    blots = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.repeat((255 * np.clip(blots, 0, 1)).astype(np.uint8)[..., None], 3, 2)
