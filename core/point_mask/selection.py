"""Point masks: from points and patch features to masks, P3S-Diffusion (arXiv 2412.19533), section III-A."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..kernels.grid import Layout
from ..kernels.maps import rescale
from ..pictures import regions
from . import kernel as kernels
from .coordinates import Points


@dataclass(frozen=True)
class Refinement:
    """How a similarity map becomes a mask.

    Attributes:
        rescale: stretch both similarity maps to [0, 1] over the picture before they are combined.
        smoothing: sigma of the Gaussian filter, in patches.
        threshold: share of the map's range, 0 for Otsu's.
        minimum_area: smaller regions are dropped and smaller holes filled, in pixels.
        grow: how far the edge moves outwards, in pixels.
        feather: width of the soft edge, in pixels.
    """

    rescale: bool = True
    smoothing: float = 0.7
    threshold: float = 0.0
    minimum_area: int = 0
    grow: int = 0
    feather: int = 0


@dataclass(frozen=True)
class Selection:
    """What points select in one picture.

    Attributes:
        mask: (H, W) in [0, 1].
        score: (H, W) in [0, 1], how well each pixel fits.
        threshold: what the score was cut at.
        missed: numbers, from 1, of the points whose score stays below.
    """

    mask: Tensor
    score: Tensor
    threshold: float = 0.0
    missed: tuple[int, ...] = ()


def similar_regions(
    features: Tensor, layout: Layout, points: Points, opposite: Points, settings: Refinement
) -> Selection:
    """The regions like the points and unlike the opposite ones, eq. 1 and 2.

    Args:
        features: (h, w, C) on the layout's grid.
        points, opposite: (x, y) in pixels; swap them for the opposite mask.

    Note:
        The paper multiplies raw cosines, M_P (1 - M_N). For look-alikes (cosine 0.9) on another background (0.2) that
        ranks the background (0.2 * 0.8) above the subject (1 * 0.1); `rescale` mends it.
    """
    size = layout.rows.pixels, layout.columns.pixels
    if not points:
        return Selection(torch.zeros(size), torch.zeros(size))
    score = _score(features, layout, points, opposite, settings.rescale)
    score = rescale(torch.from_numpy(regions.smooth(score.numpy(), settings.smoothing)))
    threshold = settings.threshold or regions.otsu_threshold(score.numpy())
    # The map is interpolated before the cut, so that the mask's outline does not show the patches.
    score = layout.rows.interpolation() @ score @ layout.columns.interpolation().T
    region = (score >= threshold).numpy()
    seeds = [_seed(layout, point, region) for point in points]
    missed = tuple(number for number, seed in enumerate(seeds, 1) if not seed.any())
    region = regions.connected(region, np.logical_or.reduce(seeds))
    return Selection(_finish(regions.without_small(region, settings.minimum_area), settings), score, threshold, missed)


def discs(size: tuple[int, int], points: Points, opposite: Points, radius: int, settings: Refinement) -> Selection:
    """Discs around the points; a pixel in reach of both signs belongs to the nearer point.

    Args:
        size: (H, W).
        radius: in pixels.
    """
    own = kernels.distance(points, size)
    region = (own <= radius) & (own <= kernels.distance(opposite, size))
    return Selection(_finish(region.numpy(), settings), (1 - own / (radius + 1)).clamp(min=0))


def fill(image: Tensor, mask: Tensor) -> Tensor:
    """The picture with a region filled from its surroundings, eq. 3; bit-identical where the mask is 0.

    Args:
        image: (H, W, 3) in [0, 1].
        mask: (H, W) in [0, 1].
    """
    touched = mask > 0
    if not touched.any():
        return image
    filled = torch.from_numpy(regions.inpaint(image.numpy(), touched.numpy()))
    return torch.where(touched[..., None], torch.lerp(image, filled, mask[..., None]), image)


def _score(features: Tensor, layout: Layout, points: Points, opposite: Points, is_rescaled: bool) -> Tensor:
    maps = [_similarity(features, layout, each) for each in (points, opposite) if each]
    if is_rescaled:
        maps = [rescale(each) for each in maps]
    return kernels.contrast(maps[0], maps[1] if opposite else None)


def _similarity(features: Tensor, layout: Layout, points: Sequence[tuple[int, int]]) -> Tensor:
    return kernels.similarity(features, [layout.patch_of(*point) for point in points])


def _seed(layout: Layout, point: tuple[int, int], region: regions.Region) -> regions.Region:
    """What a region holds of the point's patch, and of its pixel where patches are smaller."""
    (x, y), (row, column) = point, layout.patch_of(*point)
    seed = np.zeros_like(region)
    rows, columns = layout.rows.pixels_of(row), layout.columns.pixels_of(column)
    seed[rows.start : rows.stop, columns.start : columns.stop] = True
    seed[y, x] = True
    return seed & region


def _finish(region: regions.Region, settings: Refinement) -> Tensor:
    return torch.from_numpy(regions.feather(regions.grow(region, settings.grow), settings.feather))
