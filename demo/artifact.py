"""A picture with an artifact for the repair demo: one of the two cups, with part of its saucer garbled."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw

CUPS = Path(__file__).with_name("two_cups.jpg")
FILE_NAME = "garbled_cup.png"
CUP = 0, 0, 450, 360
GARBLED = 56, 186, 136, 286  # of the saucer
TILE = 10


def garbled_cup() -> Image.Image:
    """The cup on the left with the tiles of a part in wrong places; transparent there, which is the mask."""
    with Image.open(CUPS) as cups:
        picture = cups.convert("RGB").crop(CUP)
    left, top, right, bottom = GARBLED
    places = [(x, y) for x in range(left, right, TILE) for y in range(top, bottom, TILE)]
    tiles = [picture.crop((x, y, x + TILE, y + TILE)) for x, y in places]
    random.Random(0).shuffle(tiles)
    for place, tile in zip(places, tiles, strict=True):
        picture.paste(tile, place)
    alpha = Image.new("L", picture.size, 255)
    ImageDraw.Draw(alpha).rectangle((left, top, right - 1, bottom - 1), fill=0)
    picture.putalpha(alpha)
    return picture


def write_picture(folder: Path) -> None:
    """Writes the picture under the name that the workflow has."""
    garbled_cup().save(folder / FILE_NAME)
