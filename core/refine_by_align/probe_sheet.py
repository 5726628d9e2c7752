"""What a probe saw, as pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pictures.sheet import labelled_sheet, with_rings
from .match import heat_picture
from .probe import Pictures, Probe, heat
from .window import scaled

COLUMNS, CELL = 6, 224  # of the sheet, in pictures and in pixels
SHADE = 0.35  # brightness of what is outside of the spot's mask


def drawn(found: Probe, given: Pictures) -> tuple[Tensor, Tensor, Tensor]:
    """The spot's heat over the F pictures of the reference (F, H, W, 3), without them (F, H, W), and the sheet.

    The sheet (1, H', W', 3) shows picture and mean, then for each timestep its layers in the order in which they run,
    over the frame that is to be shown.
    """
    over = heat(found.spot, (given.reference.shape[1], given.reference.shape[2]))[found.frames]
    pairs = zip(over, given.reference, strict=True)
    pictures = torch.cat([heat_picture(each, one.unsqueeze(0)) for each, one in pairs])
    lines = [[("picture", _marked(given)), ("mean", pictures[given.reference_frame])]]
    tallest = max(CELL * len(each) // max(each.shape) for _, each in lines[0])
    small = scaled(given.reference[given.reference_frame, None], CELL)
    size = small.shape[1], small.shape[2]
    for timestep in dict.fromkeys(timestep for timestep, _ in found.layers):
        row = [
            (f"{layer}, t = {timestep}", heat_picture(heat(each[found.shown, None], size)[0], small)[0])
            for (at, layer), each in found.layers.items()
            if at == timestep
        ]
        lines += [row[start : start + COLUMNS] for start in range(0, len(row), COLUMNS)]
    return pictures, over, labelled_sheet(lines, (max(tallest, 1), CELL))


def _marked(given: Pictures) -> Tensor:
    if given.spot is None:
        return with_rings(given.picture[given.frame], given.points)
    return given.picture[given.frame] * (SHADE + (1 - SHADE) * given.spot).unsqueeze(-1)
