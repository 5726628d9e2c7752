"""Sheets of labelled pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from .grid import to_pillow

GAP, LABEL, FONT = 8, 24, 14
Cell = tuple[str, Tensor]


def labelled_sheet(lines: Sequence[Sequence[Cell]], cell: tuple[int, int]) -> Tensor:
    """Lines of pictures, each fitted into a cell with its label below.

    Args:
        lines: label and (H, W, 3) in [0, 1] of each picture.
        cell: (height, width) in pixels.

    Returns:
        (1, H, W, 3).
    """
    height, width = cell
    columns = max(len(line) for line in lines)
    size = GAP + columns * (width + GAP), GAP + len(lines) * (height + LABEL + GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=FONT)
    for row, line in enumerate(lines):
        for column, (label, picture) in enumerate(line):
            left, top = GAP + column * (width + GAP), GAP + row * (height + LABEL + GAP)
            fitted = ImageOps.contain(to_pillow(picture), (width, height), Image.Resampling.LANCZOS)
            sheet.paste(fitted, (left + (width - fitted.width) // 2, top + (height - fitted.height) // 2))
            draw.text((left + width / 2, top + height + LABEL / 2), label, "black", font, anchor="mm")
    return torch.from_numpy(numpy.asarray(sheet).copy()).unsqueeze(0) / 255


def with_rings(picture: Tensor, points: Sequence[tuple[int, int]]) -> Tensor:
    """A picture (H, W, 3) with a ring around each point (x, y)."""
    image = to_pillow(picture)
    draw, radius = ImageDraw.Draw(image), max(max(image.size) / 40, 2.0)
    for x, y in points:
        for grown, colour in ((1.5, "black"), (1.0, "white")):
            draw.circle((x + 0.5, y + 0.5), radius * grown, None, colour, max(round(radius * grown / 2), 1))
    return torch.from_numpy(numpy.asarray(image).copy()) / 255
