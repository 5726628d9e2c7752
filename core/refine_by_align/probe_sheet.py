"""What a probe saw, as pictures."""

from __future__ import annotations

from torch import Tensor

from ..pictures.sheet import labelled_sheet, with_rings
from .match import heat_picture
from .probe import Pictures, Probe, heat
from .window import scaled

COLUMNS, CELL = 6, 224  # of the sheet, in pictures and in pixels
SHADE = 0.35  # brightness of what is outside of the spot's mask


def drawn(found: Probe, given: Pictures) -> tuple[Tensor, Tensor, Tensor]:
    """The spot's heat over the reference (1, H, W, 3), without it (1, H, W), and the sheet (1, H', W', 3).

    The sheet shows picture and mean, then for each timestep its layers in the order in which they run.
    """
    over = heat(found.spot, (given.reference.shape[1], given.reference.shape[2]))
    picture = heat_picture(over, given.reference)
    lines = [[("picture", _marked(given)), ("mean", picture[0])]]
    tallest = max(CELL * len(each) // max(each.shape) for _, each in lines[0])
    small = scaled(given.reference, CELL)
    size = small.shape[1], small.shape[2]
    for timestep in dict.fromkeys(timestep for timestep, _ in found.layers):
        row = [
            (f"{layer}, t = {timestep}", heat_picture(heat(each, size), small)[0])
            for (at, layer), each in found.layers.items()
            if at == timestep
        ]
        lines += [row[start : start + COLUMNS] for start in range(0, len(row), COLUMNS)]
    return picture, over.unsqueeze(0), labelled_sheet(lines, (max(tallest, 1), CELL))


def _marked(given: Pictures) -> Tensor:
    if given.spot is None:
        return with_rings(given.picture[0], given.points)
    return given.picture[0] * (SHADE + (1 - SHADE) * given.spot).unsqueeze(-1)
