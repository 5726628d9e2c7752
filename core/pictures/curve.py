"""The loss curves of a training, drawn as a picture."""

from __future__ import annotations

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIZE = 768, 512
MARGIN = 64
# Okabe and Ito's blue and vermillion, which the colour-blind tell apart.
COLOURS = "#0072B2", "#D55E00"
INK, PALE = "#333333", "#E4E4E4"
LINES = 4  # of the grid


def curves(series: dict[str, list[float]]) -> Tensor:
    """Draws one panel for each named series, with a smoothed curve over the single values.

    Args:
        series: values step by step, at least one each.

    Returns:
        (1, H, W, 3) in [0, 1].
    """
    picture = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(picture)
    height = SIZE[1] // len(series)
    for number, (name, values) in enumerate(series.items()):
        box = (MARGIN, number * height + 36, SIZE[0] - 24, (number + 1) * height - 36)
        _panel(draw, box, name, values, COLOURS[number % len(COLOURS)])
    return torch.from_numpy(numpy.asarray(picture, numpy.float32) / 255).unsqueeze(0)


def smoothed(values: list[float]) -> list[float]:
    """The mean of the values around each one, over a tenth of the training."""
    reach = len(values) // 20
    windows = [values[max(0, at - reach) : at + reach + 1] for at in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _panel(
    draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], name: str, values: list[float], colour: str
) -> None:
    left, top, right, bottom = box
    font = ImageFont.load_default(size=14)
    highest = max(values) or 1.0
    for line in range(LINES + 1):
        y = bottom - (bottom - top) * line / LINES
        draw.line((left, y, right, y), PALE)
        draw.text((left - 8, y), f"{highest * line / LINES:.2g}", INK, font, anchor="rm")
    draw.text((left, top - 18), f"{name}: {smoothed(values)[-1]:.3g} after {len(values)} steps", INK, font, anchor="lm")

    def place(step: int, value: float) -> tuple[float, float]:
        x = left + (right - left) * step / max(1, len(values) - 1)
        return x, bottom - (bottom - top) * value / highest

    for step, value in enumerate(values):
        x, y = place(step, value)
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), "#BBBBBB")
    draw.line([place(step, value) for step, value in enumerate(smoothed(values))], colour, 3, "curve")
