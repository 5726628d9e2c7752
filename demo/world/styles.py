"""Art styles: what becomes of a colour, and how an outline is drawn. Every style leaves colours tellable."""

from __future__ import annotations

from dataclasses import dataclass

from .shapes import Colour

PALETTE: dict[str, Colour] = {
    "red": (215, 45, 45),
    "orange": (240, 140, 40),
    "yellow": (248, 212, 60),
    "green": (62, 165, 80),
    "blue": (50, 105, 220),
    "purple": (140, 75, 195),
    "pink": (246, 140, 185),
    "white": (245, 245, 240),
    "black": (42, 42, 50),
    "brown": (120, 75, 45),
}


@dataclass(frozen=True)
class Style:
    """A style.

    Attributes:
        words: what captions call it.
        towards: fills are mixed with this colour, by `amount`.
        line: the outline's colour; None takes the shape's own colour.
        width: of outlines, in sides of the picture; 0 draws none.
        wash: whether colours run into each other and the paper shows.
    """

    words: str
    towards: Colour = (0, 0, 0)
    amount: float = 0.0
    line: Colour | None = (0, 0, 0)
    width: float = 0.0
    wash: bool = False

    def fill(self, colour: Colour, detail: bool = False) -> Colour:
        """The colour of an area in this style; small details without an outline keep more of theirs."""
        return mixed(colour, self.towards, self.amount * (0.4 if detail and self.width else 1.0))

    def outline(self, colour: Colour) -> Colour:
        """The colour of the outline of an area that has that colour."""
        return self.line if self.line is not None else mixed(colour, (255, 255, 255), 0.15)


STYLES = {
    "flat": Style("flat cartoon"),
    "ink": Style("ink outline", line=(15, 15, 20), width=0.018),
    "blueprint": Style("blueprint", (30, 75, 165), 0.55, (228, 238, 255), 0.018),
    "neon": Style("neon", (8, 6, 16), 0.74, None, 0.018),
    "watercolor": Style("watercolor", (255, 253, 246), 0.48, wash=True),
}


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """`share` of the second colour in the first."""
    red, green, blue = (round(a * (1 - share) + b * share) for a, b in zip(first, second, strict=True))
    return red, green, blue
