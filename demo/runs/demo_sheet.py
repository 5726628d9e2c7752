"""Sheets of labelled pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

CELL, LABEL, GAP = 256, 32, 12
Row = Sequence[tuple[str, Path]]


def contact_sheet(rows: Sequence[Row], cell: tuple[int, int] = (CELL, CELL)) -> Image.Image:
    """Rows of pictures, each fitted into a cell (width, height) with its label below."""
    width, height = cell
    columns = max(map(len, rows))
    size = GAP + columns * (width + GAP), GAP + len(rows) * (height + LABEL + GAP)
    sheet = Image.new("RGB", size, "white")
    for number, row in enumerate(rows):
        for column, (label, path) in enumerate(row):
            _paste(sheet, label, path, corner(number, column, cell), cell)
    return sheet


def corner(row: int, column: int, cell: tuple[int, int]) -> tuple[int, int]:
    """Left and top of a picture's cell."""
    return GAP + column * (cell[0] + GAP), GAP + row * (cell[1] + LABEL + GAP)


def _paste(sheet: Image.Image, label: str, path: Path, at: tuple[int, int], cell: tuple[int, int]) -> None:
    (left, top), (width, height) = at, cell
    with Image.open(path) as picture:
        fitted = ImageOps.contain(picture.convert("RGB"), cell, Image.Resampling.LANCZOS)
    sheet.paste(fitted, (left + (width - fitted.width) // 2, top + (height - fitted.height) // 2))
    place = left + width / 2, top + height + LABEL / 2
    ImageDraw.Draw(sheet).text(place, label, fill="black", font=ImageFont.load_default(size=18), anchor="mm")
