"""Sheets of labelled pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

CELL, LABEL, GAP = 320, 32, 12


def contact_sheet(cells: Sequence[tuple[str, Path]], cell: tuple[int, int] = (CELL, CELL)) -> Image.Image:
    """The pictures side by side, each fitted into a cell (width, height) with its label below."""
    font = ImageFont.load_default(size=18)
    width, height = cell
    sheet = Image.new("RGB", (GAP + len(cells) * (width + GAP), height + LABEL + 2 * GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (label, path) in enumerate(cells):
        left = GAP + column * (width + GAP)
        with Image.open(path) as picture:
            fitted = ImageOps.contain(picture.convert("RGB"), cell, Image.Resampling.LANCZOS)
        place = left + (width - fitted.width) // 2, GAP + (height - fitted.height) // 2
        sheet.paste(fitted, place)
        draw.text((left + width / 2, GAP + height + LABEL / 2), label, fill="black", font=font, anchor="mm")
    return sheet
