"""Plots of curves with their intervals, drawn with Pillow."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .rows import Plot

PANEL, MARGIN = (420, 320), (58, 34, 18, 46)  # left, top, right, bottom
# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
INK, PALE = "#333333", "#E4E4E4"


def write(path: Path, plots: list[Plot]) -> None:
    """Writes the plots side by side as one PNG."""
    sheet = Image.new("RGB", (PANEL[0] * len(plots), PANEL[1]), "white")
    for number, plot in enumerate(plots):
        _draw(ImageDraw.Draw(sheet), PANEL[0] * number, plot)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def _draw(draw: ImageDraw.ImageDraw, offset: int, plot: Plot) -> None:
    font = ImageFont.load_default(13)
    values = [end for curve in plot.curves for value in curve.values for end in (value.low, value.high)]
    places = [place for curve in plot.curves for place in curve.at]
    low, high = min(values), max(values)
    low, high = low - 0.08 * (high - low + 1e-6), high + 0.08 * (high - low + 1e-6)
    top = max(MARGIN[1], 14 + 16 * len(plot.curves))  # below their names
    left, right, bottom = offset + MARGIN[0], offset + PANEL[0] - MARGIN[2], PANEL[1] - MARGIN[3]

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - min(places)) / (max(places) - min(places) or 1)
        return left + 8 + across * (right - left - 16), bottom - (y - low) / (high - low) * (bottom - top)

    for step in range(5):
        y = low + (high - low) * step / 4
        draw.line([(left, at(0, y)[1]), (right, at(0, y)[1])], PALE)
        draw.text((left - 6, at(0, y)[1]), f"{y:.3g}", INK, font, anchor="rm")
    for place in sorted(set(places)):
        draw.text((at(place, 0)[0], bottom + 6), f"{place:g}", INK, font, anchor="mt")
    draw.text(((left + right) / 2, PANEL[1] - 8), plot.across, INK, font, anchor="mb")
    draw.text((left, 8), plot.up, INK, font, anchor="lt")
    for number, curve in enumerate(plot.curves):
        colour = COLOURS[number % len(COLOURS)]
        draw.line([at(x, value.mean) for x, value in zip(curve.at, curve.values, strict=True)], colour, 2)
        for x, value in zip(curve.at, curve.values, strict=True):
            draw.line([at(x, value.low), at(x, value.high)], colour, 1)
            draw.circle(at(x, value.mean), 3, colour)
        draw.text((right, 8 + 16 * number), curve.label, colour, font, anchor="rt")
