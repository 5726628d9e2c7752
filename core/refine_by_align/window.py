"""The window of a picture that an artifact is repaired in, and pasting it back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..pictures import regions
from ..pictures.grid import CELL, binary_mask, resized
from .match import Box, bounding_box

SHORTEST = 64  # side of a window and of a working size
NEAR = 8  # artifacts less than twice as many pixels apart are one


@dataclass(frozen=True)
class Work:
    """How the window is chosen and worked on.

    Attributes:
        context: what the window shows around the artifact, as a share of its longer side, on all sides.
        size: longer side of the window and of the reference when the model sees them, in pixels.
        feather: how far the soft edge reaches beyond the mask, in pixels.
        cell: pixels of a latent, each way.
        unit: pixels that what the model sees is a multiple of, each way.
    """

    context: float = 0.5
    size: int = 512
    feather: int = 8
    cell: int = CELL
    unit: int = CELL


@dataclass(frozen=True, eq=False)
class Case:
    """One picture to repair.

    Attributes:
        image: (1, H, W, 3).
        mask: (H, W), 0 and 1.
        reference: (1, H', W', 3).
        searched: (h, w) of any size, where in the reference is searched; None is everywhere.
        others: (1, h, w, 3) each, further references.
    """

    image: Tensor
    mask: Tensor
    reference: Tensor
    searched: Tensor | None
    others: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Artifact:
    """One area to repair.

    Attributes:
        region: (H, W), where it is.
        weight: (H, W) in [0, 1], 1 in the region, how much of the repair is pasted.
        window: what the model sees of the picture.
    """

    region: Tensor
    weight: Tensor
    window: Box


def cases(
    image: Tensor,
    mask: Tensor,
    reference_image: Tensor,
    reference_mask: Tensor | None = None,
    more_references: Tensor | None = None,
) -> list[Case]:
    """The pictures of a batch, each with its mask and its reference.

    Args:
        image, reference_image: (B, H, W, 3).
        mask, reference_mask: (B, H, W) of any size.
        more_references: (R, H, W, 3), further references of each picture.

    Raises:
        ValueError: masks or references that are neither one for all pictures nor one for each, or an empty reference
            mask.
    """
    masks = binary_mask(mask, (image.shape[1], image.shape[2]))
    searched = [None] if reference_mask is None else list(reference_mask)
    given = {"mask": len(masks), "reference_image": len(reference_image), "reference_mask": len(searched)}
    for name, count in given.items():
        if count not in (1, len(image)):
            raise ValueError(
                f"{name} is a batch of {count}, but image is one of {len(image)}. Give one for all pictures, or one "
                "for each."
            )
    if not all(where is None or where.any() for where in searched):
        raise ValueError("reference_mask has nothing white. Paint where to search, or leave the input unconnected.")
    references = reference_image.split(1)
    others = () if more_references is None else more_references.split(1)
    return [
        Case(one, masks[at % len(masks)], references[at % len(references)], searched[at % len(searched)], others)
        for at, one in enumerate(image.split(1))
    ]


def artifacts(mask: Tensor, work: Work, is_together: bool) -> list[Artifact]:
    """The areas of a mask.

    Args:
        mask: (H, W), 0 and 1.
        is_together: whether separate areas are one artifact.

    Returns:
        The areas; an empty list for an empty mask.
    """
    region = mask.numpy() > 0
    if not region.any():
        return []
    parts = [region] if is_together else [region & part for part in regions.components(regions.grow(region, NEAR))]
    return [_artifact(part, work) for part in parts]


def _artifact(region: regions.Region, work: Work) -> Artifact:
    weight = region.astype(np.float32)
    if work.feather:
        weight = np.clip(1 - np.maximum(regions.signed_distance(region), 0) / work.feather, 0, 1)
    soft = bounding_box(weight > 0)
    least = max(soft.width, soft.height, SHORTEST)
    window = window_around(bounding_box(region), work.context, region.shape, least)
    return Artifact(torch.from_numpy(region).float(), torch.from_numpy(weight), window)


def window_around(box: Box, context: float, size: tuple[int, ...], least: int) -> Box:
    """A square around a box, as far as a picture (H, W) allows; shifted rather than cut at the border.

    Args:
        context: around the box on all sides, as a share of its longer side.
        least: no smaller side.
    """
    side = max(round(max(box.width, box.height) * (1 + 2 * context)), least)
    height, width = min(side, size[0]), min(side, size[1])
    x = min(max(box.x + (box.width - width) // 2, 0), size[1] - width)
    y = min(max(box.y + (box.height - height) // 2, 0), size[0] - height)
    return Box(x, y, width, height)


def scaled(picture: Tensor, longest: int, unit: int = CELL) -> Tensor:
    """A picture (1, H, W, C) in [0, 1] with its longer side at a length, both sides multiples of a unit."""
    scale, least = longest / max(picture.shape[1:3]), min(SHORTEST, longest)
    size = tuple(max(round(side * scale / unit) * unit, least) for side in picture.shape[1:3])
    return resized(picture, (size[0], size[1]))


def latent_mask(artifact: Artifact, picture: Tensor, cell: int = CELL) -> Tensor:
    """(1, 1, h, w), 1 at each latent of a scaled window (1, H, W, C) that what is pasted touches."""
    height, width = picture.shape[1] // cell, picture.shape[2] // cell
    touched = (artifact.window.cut(artifact.weight.unsqueeze(0)) > 0).float().unsqueeze(0)
    return F.adaptive_max_pool2d(touched, (height, width))


def paste(picture: Tensor, painted: Tensor, artifact: Artifact) -> Tensor:
    """Puts a painted window into a picture; every pixel without weight stays the picture's own, to the bit.

    The window is first shifted in colour by what it differs by from the picture where nothing was painted, on average:
    that is what encoding and decoding did to it.

    Args:
        picture: (1, H, W, 3).
        painted: (1, h, w, 3) of any size.

    Returns:
        (1, H, W, 3).
    """
    window = artifact.window
    own, weight = window.cut(picture), window.cut(artifact.weight.unsqueeze(0))
    painted = resized(painted, (window.height, window.width))
    if not weight.all():
        painted = painted + (own - painted)[weight == 0].mean(0)
    blended = torch.where(weight.unsqueeze(-1) > 0, torch.lerp(own, painted.clamp(0, 1), weight.unsqueeze(-1)), own)
    result = picture.clone()
    window.cut(result)[:] = blended
    return result
