"""Where every place of a picture looks on a reference, for exploring; the chosen spot in detail."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels.attention import AttentionLayer
from ..kernels.maps import rescale
from ..patches.blocks import Layer, layer_name
from ..patches.families.attentions import Attentions
from ..patches.families.table import readable_attentions
from .in_context import observe_in_context
from .kernel import group_of_mask, groups_of_points, mean_map
from .observe import Groups, Look, View, brought, cell_and_unit, observe
from .window import scaled

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

Size = tuple[int, int]

# Longer side of the grids, of query places and of their maps: 32^4 bytes are 1 MiB.
CELLS = 32


@dataclass(frozen=True)
class Probe:
    """What a probe saw.

    Attributes:
        layers: (timestep, layer's name) -> (T', h', w'), the map of the spot over each frame of tokens of the
            reference; 1 is what even attention gives.
        spot: (T', h', w'), mean of them on the finest grid.
        places: (P, h, w), the maps of all cells of the picture's grid, row by row, mean over the layers, over the
            frame of the reference that is shown.
        grid: (rows, columns) of that grid.
        frames: for each picture of the reference, which frame of tokens it is in.
        shown: the frame of tokens of the reference that is shown.
    """

    layers: dict[tuple[int, str], Tensor]
    spot: Tensor
    places: Tensor
    grid: Size
    frames: list[int]
    shown: int


@dataclass(frozen=True, eq=False)
class Pictures:
    """What is probed.

    Attributes:
        picture, reference: (F, H, W, 3), each of a size of its own; for a model of pictures F = 1.
        points: (x, y) in pixels of the picture, the spot; at least one.
        spot: (H, W), not all zero; takes the place of the points.
        frame, reference_frame: which of the F is looked from, and which of the reference's is shown.
    """

    picture: Tensor
    reference: Tensor
    points: list[tuple[int, int]]
    spot: Tensor | None
    frame: int = 0
    reference_frame: int = 0


def probe(
    model: ModelPatcher,
    positive: list[Any],
    given: Pictures,
    encode: Callable[[Tensor], Tensor],
    working_size: int,
    look: Look,
    node: str,
    in_context: bool = False,
) -> Probe:
    """Observes a picture and a reference once per timestep.

    Args:
        model, positive, look, node: as for `observe`.
        encode: (F, H, W, 3) -> their latents, as `observe` takes them.
        working_size: longer side at which the model sees both, in pixels.
        in_context: whether the reference is in the sequence of an editing model, see `observe_in_context`.
    """
    size, reference_size = ((each.shape[1], each.shape[2]) for each in (given.picture, given.reference))
    attentions, (_, unit) = readable_attentions(model, node), cell_and_unit(model)
    latents = [encode(scaled(each, working_size, unit)) for each in (given.picture, given.reference)]
    grid, reference_grid = grid_of(size), grid_of(reference_size)
    centres, spot = cell_centres(grid, size), spot_of(given.points, given.spot, size)
    at, frames = (
        token_frames(attentions, latent, len(each))
        for latent, each in zip(latents, (given.picture, given.reference), strict=True)
    )
    shown = frames[given.reference_frame]
    layers: dict[tuple[int, str], Tensor] = {}
    places = torch.zeros(len(centres), *reference_grid, device=model.load_device)

    def groups(tall: Size) -> Tensor:
        grid = tall[0] // (at[-1] + 1), tall[1]
        own = torch.cat([spot(grid), groups_of_points(centres, size, grid)])
        before = at[given.frame] * own.shape[1]
        return F.pad(own, (before, math.prod(tall) - own.shape[1] - before))

    def see(timestep: int, place: Layer, tall: Tensor) -> None:
        maps = tall.unflatten(1, (frames[-1] + 1, -1))
        layers[timestep, layer_name(place)] = maps[0].clone()  # without those of all places
        places.add_(F.interpolate(maps[None, 1:, shown], reference_grid, mode="bilinear", antialias=True)[0])

    view = View(groups)

    def see_layer(timestep: int, place: Layer, layer: AttentionLayer) -> None:
        see(timestep, place, view.map_of(layer))

    def see_maps(timestep: int, place: Layer, maps: list[Tensor]) -> None:
        see(timestep, place, maps[0])

    if in_context:
        observe_in_context(model, positive, latents[0], latents[1:], look, groups, see_maps, node)
    else:
        observe(model, positive, latents[0], latents[1], look, see_layer, node)
    layers = brought(layers)
    return Probe(layers, mean_map(list(layers.values())), places.cpu() / len(layers), grid, frames, shown)


def token_frames(attentions: Attentions, latent: Tensor, pictures: int) -> list[int]:
    """Which frame of tokens each picture of a video is in.

    VAEs of videos give the first picture a latent of its own, and one to so many of the following.

    Args:
        latent: (1, C, F, h, w), or (F, C, h, w) where frames lie in the batch.
        pictures: how many it was made of.
    """
    latents = latent.shape[2] if latent.ndim == 5 else len(latent)
    tokens = attentions.frames(latent.shape) if latent.ndim == 5 else latents
    last = max(pictures - 1, 1)
    return [-(-number * (latents - 1) // last) * tokens // latents for number in range(pictures)]


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
    """Maps (F, h, w) over pictures (H, W), stretched together to [0, 1] on a logarithmic scale; flat ones are 0."""
    return F.interpolate(rescale(attention.log1p()).unsqueeze(0), size, mode="bilinear", antialias=True)[0]


def mosaic(found: Probe) -> tuple[Tensor, float]:
    """All maps in one picture: a tile for each cell, and below them one for the spot.

    Returns:
        ((rows + 1) * h, columns * w) in [0, 1], logarithmic as the long tail of attention needs it, and the attention
        that 1 stands for.
    """
    rows, columns = found.grid
    height, width = found.places.shape[1:]
    spot = F.interpolate(found.spot[None, None, found.shown], (height, width), mode="bilinear", antialias=True)[0]
    last = torch.cat([spot, torch.zeros(columns - 1, height, width)])
    tiles = torch.cat([found.places, last])
    most = tiles.max().item()
    picture = tiles.unflatten(0, (rows + 1, columns)).movedim(2, 1).reshape((rows + 1) * height, columns * width)
    return picture.log1p() / math.log1p(most), most
