"""Where every place of a picture looks on a reference, for exploring; the chosen spot in detail."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels.attention import AttentionLayer
from ..kernels.maps import rescale
from ..patches.blocks import Layer, layer_name
from .kernel import attention_to_reference, group_of_mask, groups_of_points, mean_map
from .observe import Groups, Look, observe

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

Size = tuple[int, int]

# Longer side of the grids, of query places and of their maps: 32^4 bytes are 1 MiB.
CELLS = 32


@dataclass(frozen=True)
class Probe:
    """What a probe saw.

    Attributes:
        layers: (timestep, layer's name) -> (h', w'), the map of the spot; 1 is what even attention gives.
        spot: (h', w'), mean of them on the finest grid.
        places: (P, h, w), the maps of all cells of the picture's grid, row by row, mean over the layers.
        grid: (rows, columns) of that grid.
    """

    layers: dict[tuple[int, str], Tensor]
    spot: Tensor
    places: Tensor
    grid: Size


def probe(
    model: ModelPatcher,
    positive: list[Any],
    latents: tuple[Tensor, Tensor],
    sizes: tuple[Size, Size],
    look: Look,
    spot: Groups,
    node: str,
) -> Probe:
    """Observes a picture and a reference once per timestep.

    Args:
        model, positive, look, node: as of `observe`.
        latents: (1, C, h, w) of the picture and of the reference.
        sizes: (H, W) of both in pixels.
        spot: gives the weights (1, h * w) of the spot's queries for a grid (h, w).
    """
    grid, reference_grid = (grid_of(size) for size in sizes)
    centres = cell_centres(grid, sizes[0])
    layers: dict[tuple[int, str], Tensor] = {}
    places = torch.zeros(len(centres), *reference_grid)

    def see(timestep: int, place: Layer, layer: AttentionLayer) -> None:
        groups = torch.cat([spot(layer.grid), groups_of_points(centres, sizes[0], layer.grid)])
        # Times the number of keys, so that layers of all sizes can be compared.
        seen = attention_to_reference(layer, groups).cpu() * layer.k.shape[1]
        maps = seen.unflatten(-1, layer.reference_grid)
        layers[timestep, layer_name(place)] = maps[0]
        places.add_(F.interpolate(maps[None, 1:], reference_grid, mode="bilinear", antialias=True)[0])

    observe(model, positive, *latents, look, see, node)
    mean = mean_map([each.unsqueeze(0) for each in layers.values()])[0]
    return Probe(layers, mean, places / len(layers), grid)


def grid_of(size: Size) -> Size:
    """(rows, columns) of about square cells over a picture (H, W)."""
    rows, columns = (max(round(side * CELLS / max(size)), 1) for side in size)
    return rows, columns


def cell_centres(grid: Size, size: Size) -> list[tuple[int, int]]:
    """The pixel (x, y) in the middle of each cell of a grid over a picture (H, W), row by row."""
    (rows, columns), (height, width) = grid, size
    xs = [(2 * column + 1) * width // (2 * columns) for column in range(columns)]
    return [(x, (2 * row + 1) * height // (2 * rows)) for row in range(rows) for x in xs]


def spot_of(points: list[tuple[int, int]], mask: Tensor | None, size: Size) -> Groups:
    """The queries that a probe looks at in detail.

    Args:
        points: (x, y) in pixels, at least one if there is no mask.
        mask: (H, W), not all zero; takes the place of the points.
        size: (H, W) of the picture.
    """
    if mask is not None:
        return lambda grid: group_of_mask(mask, grid)
    return lambda grid: groups_of_points(points, size, grid).mean(0, keepdim=True)


def heat(attention: Tensor, size: Size) -> Tensor:
    """A map (h, w) over a picture (H, W), stretched to [0, 1] on a logarithmic scale; a flat one is 0."""
    return F.interpolate(rescale(attention.log1p())[None, None], size, mode="bilinear", antialias=True)[0, 0]


def mosaic(found: Probe) -> tuple[Tensor, float]:
    """All maps in one picture: a tile for each cell, and below them one for the spot.

    Returns:
        ((rows + 1) * h, columns * w) in [0, 1], logarithmic as the long tail of attention needs it, and the attention
        that 1 stands for.
    """
    rows, columns = found.grid
    height, width = found.places.shape[1:]
    spot = F.interpolate(found.spot[None, None], (height, width), mode="bilinear", antialias=True)[0]
    last = torch.cat([spot, torch.zeros(columns - 1, height, width)])
    tiles = torch.cat([found.places, last])
    most = tiles.max().item()
    picture = tiles.unflatten(0, (rows + 1, columns)).movedim(2, 1).reshape((rows + 1) * height, columns * width)
    return picture.log1p() / math.log1p(most), most
