"""From a correspondence map to a place in the reference, Refine-by-Align (arXiv 2412.00306)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels.maps import rescale
from ..pictures import regions

HEAT_SHARE = 0.65  # of the colours in the heat map's picture, the rest is the reference


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    x: int
    y: int
    width: int
    height: int

    def cut(self, picture: Tensor) -> Tensor:
        """This part of (B, H, W, ...)."""
        return picture[:, self.y : self.y + self.height, self.x : self.x + self.width]


@dataclass(frozen=True)
class Finding:
    """How the place is found in a map.

    Attributes:
        smoothing: sigma of the Gaussian filter, in cells of the map.
        threshold: share of the map's range, 0 for Otsu's.
        margin: around the region, as a share of its longer side.
        minimum_contrast: how many times the rest's attention the region must get to count as a match.
    """

    smoothing: float = 0.5
    threshold: float = 0.0
    margin: float = 0.1
    minimum_contrast: float = 2.0


@dataclass(frozen=True)
class Match:
    """The place in the reference that shows what the queries look for.

    Attributes:
        heat: (H, W) in [0, 1], the map over the reference.
        region: (H, W), 0 and 1, the main component.
        box: around it, with margin.
        contrast: mean attention inside the region over that outside.
        is_match: whether the contrast is large enough.
    """

    heat: Tensor
    region: Tensor
    box: Box
    contrast: float
    is_match: bool


def find(attention: Tensor, size: tuple[int, int], settings: Finding) -> Match:
    """Correspondence map -> threshold -> main component -> box.

    Args:
        attention: (h, w), mean attention of the queries, 1 where it is what even attention would be.
        size: (H, W) of the reference in pixels.

    Returns:
        A match; where nothing stands out, the whole reference with a contrast of 1.

    Note:
        The paper does not say how it cuts the map. Attention has a long tail: a few tokens get many times what the
        rest of the same part gets. Its logarithm has not.
    """
    attention = attention.float()
    score = rescale(torch.from_numpy(regions.smooth(attention.log1p().numpy(), settings.smoothing)))
    if not score.any():
        return Match(
            torch.zeros(size), torch.ones(size), Box(0, 0, size[1], size[0]), 1.0, settings.minimum_contrast <= 1
        )
    threshold = settings.threshold or _halfway(score)
    # Interpolated before the cut, so that the outline does not follow the cells.
    heat, mass = (F.interpolate(each[None, None], size, mode="bilinear")[0, 0] for each in (score, attention))
    # Interpolation lowers the peak, perhaps below the threshold.
    region = regions.main_component((heat >= min(threshold, heat.max().item())).numpy(), heat.numpy())
    inside = torch.from_numpy(region)
    outside = mass[~inside].mean().item() if not region.all() else mass.mean().item()
    contrast = mass[inside].mean().item() / max(outside, 1e-12)
    box = grown(bounding_box(region), settings.margin, size)
    return Match(heat, inside.float(), box, contrast, contrast >= settings.minimum_contrast)


def _halfway(score: Tensor) -> float:
    """Half-way between the two classes of Otsu's threshold, where an edge between two flat areas really lies."""
    upper = score >= regions.otsu_threshold(score.numpy())
    return ((score[upper].mean() + score[~upper].mean()) / 2).item()


def bounding_box(region: regions.Region) -> Box:
    """The smallest box that holds a region, which must not be empty."""
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    return Box(int(columns[0]), int(rows[0]), int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1)


def grown(box: Box, margin: float, size: tuple[int, int]) -> Box:
    """A box with a margin, as a share of its longer side, on all sides as far as the picture (H, W) reaches."""
    pixels = round(margin * max(box.width, box.height))
    x, y = max(box.x - pixels, 0), max(box.y - pixels, 0)
    right, bottom = min(box.x + box.width + pixels, size[1]), min(box.y + box.height + pixels, size[0])
    return Box(x, y, right - x, bottom - y)


def heat_picture(heat: Tensor, reference: Tensor) -> Tensor:
    """The heat over the reference.

    Args:
        heat: (H, W) in [0, 1].
        reference: (1, H, W, 3).

    Returns:
        (1, H, W, 3).
    """
    colours = torch.from_numpy(regions.heat_map(heat.numpy()))
    return torch.lerp(reference, colours.unsqueeze(0), HEAT_SHARE)
