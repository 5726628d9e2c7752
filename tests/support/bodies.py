"""Drawn bodies of DensePose's 24 parts, and the pictures that tools make of them."""

from __future__ import annotations

import io
from typing import Any

import numpy
import torch
from PIL import Image, ImageDraw
from torch import Tensor

Array = Any


def parts(seed: int, width: int = 384, height: int = 512) -> Array:
    """(H, W) part numbers of somebody standing, each seed in another pose."""
    random = numpy.random.default_rng(seed)
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    scale = height / 512 * random.uniform(0.85, 1.05)
    centre, top = width / 2 + random.uniform(-15, 15) * scale, random.uniform(20, 50) * scale

    def at(x: float, y: float, sway: float = 0.0) -> Array:
        dx, dy = random.uniform(-sway, sway, 2)
        return numpy.array([centre + (x + dx) * scale, top + (y + dy) * scale])

    def limb(start: Array, end: Array, width: float, front: int, back: int) -> None:
        across = (end - start)[::-1] * [-1, 1]
        across = across / numpy.linalg.norm(across) * width * scale / 2
        for side, part in ((across, front), (-across, back)):
            draw.polygon([tuple(point) for point in (start, start + side, end + side, end)], fill=part)

    def blob(centre: Array, x: float, y: float, part: int) -> None:
        draw.ellipse([*(centre - numpy.array([x, y]) * scale), *(centre + numpy.array([x, y]) * scale)], fill=part)

    for side, (thigh, calf, foot) in ((-1, ((7, 9), (11, 13), 6)), (1, ((8, 10), (12, 14), 5))):
        hip, knee, ankle = at(side * 22, 190), at(side * 30, 290, 12), at(side * 32, 390, 12)
        limb(hip, knee, 40, *thigh)
        limb(knee, ankle, 28, *calf)
        blob(ankle, 16, 9, foot)
    trunk = [at(-40, 70), at(40, 70), at(34, 200), at(-34, 200)]
    draw.polygon([tuple(point) for point in trunk], fill=1 + seed % 2)
    for side, (upper, lower, hand) in ((-1, ((16, 18), (20, 22), 3)), (1, ((15, 17), (19, 21), 4))):
        shoulder, elbow, wrist = at(side * 44, 78), at(side * 72, 140, 12), at(side * 66, 205, 12)
        limb(shoulder, elbow, 26, *upper)
        limb(elbow, wrist, 20, *lower)
        blob(wrist, 10, 10, hand)
    for part, angle in ((24, 90), (23, -90)):
        draw.pieslice([*at(-24, 5), *at(24, 65)], angle, angle + 180, fill=part)
    return numpy.asarray(canvas)


def uv(labels: Array) -> Array:
    """(2, H, W) U and V that run over the picture, 0 on the background."""
    rows, columns = numpy.indices(labels.shape)
    values = numpy.stack([columns * 255 // labels.shape[1], rows * 255 // labels.shape[0]])
    return (values * (labels > 0)).astype(numpy.uint8)


def jpeg(pixels: Array) -> Array:
    """As a JPEG file has it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return numpy.asarray(Image.open(file))


def picture(*pixels: Array) -> Tensor:
    """(H, W, 3) uint8 each -> (B, H, W, 3) in [0, 1], as ComfyUI loads it."""
    return torch.from_numpy(numpy.stack(pixels).astype(numpy.float32)) / 255
