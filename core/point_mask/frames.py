"""Point masks of batches of pictures, with ComfyUI's progress bar and cancel button."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..kernels.grid import Layout
from ..models.vision import PatchEncoder
from ..patches.progress import each_of
from ..pictures import regions
from .coordinates import NEGATIVE, POSITIVE, Points, for_frames
from .selection import Refinement, Selection, discs, fill, similar_regions

# What the positive points select, and what the negative ones do.
Pair = tuple[Selection, Selection]


@dataclass(frozen=True, eq=False)
class PointMasks:
    """What points select in B pictures.

    Attributes:
        masks, opposite: (B, H, W) in [0, 1], of the positive and of the negative points.
        cleaned: (B, H, W, 3), the pictures with the negative subject filled.
        heat: (B, H, W, 3), the score of the positive points in colours.
        note: a sentence for the user, or nothing.
    """

    masks: Tensor
    opposite: Tensor
    cleaned: Tensor
    heat: Tensor
    note: str


def point_masks(
    image: Tensor,
    positive: list[Points],
    negative: list[Points],
    encoder: PatchEncoder | None,
    radius: int,
    settings: Refinement,
) -> PointMasks:
    """The regions that look like the points; without an encoder discs of a radius in pixels around them.

    Args, Raises: as of `by_discs` and `by_similarity`.
    """
    if encoder is None:
        chosen = by_discs(image, positive, negative, radius, settings)
        note = f"No clip_vision is connected: these are discs of {radius} pixels around the points."
    else:
        chosen = by_similarity(image, positive, negative, encoder, settings)
        note = missed_points(chosen)
    masks, opposite = (torch.stack([pair[sign].mask for pair in chosen]) for sign in (0, 1))
    return PointMasks(masks, opposite, cleaned(image, masks, opposite), heat_maps(chosen), note)


def by_discs(
    image: Tensor, positive: list[Points], negative: list[Points], radius: int, settings: Refinement
) -> list[Pair]:
    """Discs around the points.

    Args:
        image: (B, H, W, 3) in [0, 1].
        positive, negative: one list for all frames, or one for each.
        radius: in pixels.

    Raises:
        ValueError: lists of points for another number of frames, or the same pixel in both.
    """
    height, width = image.shape[1:3]
    pairs = []
    for _, wanted, unwanted in _frames(image, positive, negative):
        if shared := set(wanted) & set(unwanted):
            raise ValueError(f"The point {min(shared)} is positive and negative at once. Remove one of the two.")
        select = partial(discs, (height, width), radius=radius, settings=settings)
        pairs.append((select(wanted, unwanted), select(unwanted, wanted)))
    return pairs


def by_similarity(
    image: Tensor, positive: list[Points], negative: list[Points], encoder: PatchEncoder, settings: Refinement
) -> list[Pair]:
    """The regions that look like the points.

    Args:
        image: (B, H, W, 3) in [0, 1].
        positive, negative: one list for all frames, or one for each.

    Raises:
        ValueError: lists of points for another number of frames, points of both signs on one patch, or no frame in
            which the positive points select anything.
    """
    layout = encoder.layout(*image.shape[1:3])
    pairs = []
    for picture, wanted, unwanted in _frames(image, positive, negative):
        _require_apart(layout, wanted, unwanted)
        select = partial(similar_regions, encoder.features(picture, layout), layout, settings=settings)
        pairs.append((select(wanted, unwanted), select(unwanted, wanted)))
    _require_any(pairs, for_frames(positive, len(image), POSITIVE))
    return pairs


def missed_points(pairs: Sequence[Pair]) -> str:
    """A sentence about points that lie outside what they selected, or nothing."""
    selections = dict(zip(("positive", "negative"), zip(*pairs, strict=True), strict=True))
    missed = {
        sign: ", ".join(f"{sign} {number}" for number in sorted({number for one in each for number in one.missed}))
        for sign, each in selections.items()
    }
    said = []
    if missed["positive"]:
        threshold = max(each.threshold for each in selections["positive"] if each.missed)
        said.append(
            f"The mask does not reach {missed['positive']}: set threshold below {threshold:.2f}, or move the point."
        )
    if missed["negative"]:
        said.append(f"negative_mask does not reach {missed['negative']}.")
    return " ".join(said)


def cleaned(image: Tensor, masks: Tensor, opposite: Tensor) -> Tensor:
    """The pictures with the negative subject filled; the positive one stays even where both masks reach.

    Args:
        image: (B, H, W, 3) in [0, 1].
        masks, opposite: (B, H, W) in [0, 1].
    """
    return torch.stack([fill(*each) for each in zip(image, opposite * (1 - masks), strict=True)])


def heat_maps(pairs: Sequence[Pair]) -> Tensor:
    """(B, H, W, 3), the score of the positive points in colours."""
    return torch.stack([torch.from_numpy(regions.heat_map(subject.score.numpy())) for subject, _ in pairs])


def _frames(image: Tensor, positive: list[Points], negative: list[Points]) -> Iterator[tuple[Tensor, Points, Points]]:
    wanted, unwanted = for_frames(positive, len(image), POSITIVE), for_frames(negative, len(image), NEGATIVE)
    yield from zip(each_of(image.unbind()), wanted, unwanted, strict=True)


def _require_apart(layout: Layout, positive: Points, negative: Points) -> None:
    taken = {layout.patch_of(*point): point for point in positive}
    for point in negative:
        if other := taken.get(layout.patch_of(*point)):
            rows, columns = layout.grid
            raise ValueError(
                f"The positive point {other} and the negative point {point} lie on the same patch: the encoder sees "
                f"the picture as {columns} x {rows} patches. Move them apart, or raise resolution."
            )


def _require_any(pairs: Sequence[Pair], positive: Sequence[Points]) -> None:
    subjects = [subject for subject, _ in pairs]
    if any(subject.mask.any() for subject in subjects):
        return
    if any(len(subject.missed) < len(points) for subject, points in zip(subjects, positive, strict=True)):
        raise ValueError(
            "Point Mask finds a region, but minimum_area and grow leave nothing of it. Lower minimum_area, or raise "
            "grow."
        )
    best = max(
        float(subject.score[y, x]) for subject, points in zip(subjects, positive, strict=True) for x, y in points
    )
    threshold, lower = subjects[0].threshold, math.floor(90 * best) / 100
    cure = f"Set threshold to {lower:.2f} (0 finds it by itself), move" if lower > 0 else "Move"
    raise ValueError(
        f"Point Mask selects nothing at the points of {POSITIVE}: similarity there is at most {best:.2f}, but the map "
        f"was cut at {threshold:.2f}. {cure} the points, or try another layer."
    )
