"""Garment-agnostic masks: what of a person is repainted when a garment is put on.

Three rules. `viton_hd` and `dress_code` are those of Leffa's two try-on checkpoints, bit for bit, at 384 x 512.
`clean` is the first without its defects, at any size: what is protected stays protected, and every blob counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

from ..patches.progress import each_of
from . import outline
from . import parsing as p
from .keypoints import Frame, Points, keypoints_of
from .palette import Labels, resized

Mask = NDArray[numpy.bool_]

CLEAN, VITON_HD, DRESS_CODE = "clean", "viton_hd", "dress_code"
UPPER_BODY, LOWER_BODY, DRESSES = "upper_body", "lower_body", "dresses"
GARMENTS = [UPPER_BODY, LOWER_BODY, DRESSES]
OFFICIAL_SIZE = (512, 384)  # height, width

HD_GARMENT = {
    UPPER_BODY: {p.UPPER, p.DRESS},
    LOWER_BODY: {p.SKIRT, p.PANTS, p.LEFT_LEG, p.RIGHT_LEG},
    DRESSES: {p.UPPER, p.SKIRT, p.PANTS, p.DRESS},
}
DC_GARMENT = {
    UPPER_BODY: {p.UPPER},
    LOWER_BODY: {p.PANTS, p.LEFT_LEG, p.RIGHT_LEG},
    DRESSES: {p.DRESS, p.LEFT_LEG, p.RIGHT_LEG},
}
OTHER_GARMENTS = {
    UPPER_BODY: {p.SKIRT, p.PANTS},
    LOWER_BODY: {p.UPPER, p.LEFT_ARM, p.RIGHT_ARM},
    DRESSES: set(),
}
HD_FIXED = {p.LEFT_SHOE, p.RIGHT_SHOE, p.HAT, p.SUNGLASSES, p.BAG}
DC_FIXED = {p.HAIR, p.LEFT_SHOE, p.RIGHT_SHOE, p.HAT, p.SUNGLASSES, p.SCARF, p.BAG}
HD_HEAD = {p.HAT, p.SUNGLASSES, p.HEAD}
DC_HEAD = {p.HAT, p.HAIR, p.SUNGLASSES, p.HEAD, p.NECK}
ARMS = (
    (p.RIGHT_ARM, p.SHOULDER_RIGHT, p.ELBOW_RIGHT, p.WRIST_RIGHT),
    (p.LEFT_ARM, p.SHOULDER_LEFT, p.ELBOW_LEFT, p.WRIST_LEFT),
)


def from_maps(parsing: Tensor, frames: Sequence[Frame | None], garment: str, rule: str, data_set: str) -> Tensor:
    """Masks from what other nodes give.

    Args:
        parsing: (B, H, W, C) in [0, 1], human-parsing maps.
        frames: OpenPose frames, one or B of them; None where there are no body points.
        garment: one of `GARMENTS`.
        rule: `CLEAN`, `VITON_HD` or `DRESS_CODE`; the official ones need body points.
        data_set: whose labels the maps hold, see `parsing.labels_of`.

    Returns:
        (B, h, w), 1 is repainted.

    Raises:
        ValueError: a map or frame that cannot be read, or nothing to replace.
    """
    masks = [
        _mask(one, frames[i % len(frames)], garment, rule, data_set) for i, one in enumerate(each_of(parsing.unbind()))
    ]
    return torch.stack([torch.from_numpy(mask).float() for mask in masks])


def _mask(picture: Tensor, frame: Frame | None, garment: str, rule: str, data_set: str) -> Mask:
    labels = p.labels_of(picture, data_set)
    if rule != CLEAN:
        labels = resized(labels, OFFICIAL_SIZE)
    points = keypoints_of(frame, labels) if frame else numpy.zeros((8, 2))
    mask = {CLEAN: clean, VITON_HD: viton_hd, DRESS_CODE: dress_code}[rule](labels, points, garment)
    if not mask.any():
        raise ValueError(
            f"parsing holds nothing to replace by a garment of the type {garment}; its labels are "
            f"{numpy.unique(labels).tolist()}. Choose another garment_type, or check the parser and its labels."
        )
    return mask


def clean(labels: Labels, points: Points, garment: str) -> Mask:
    """The rule of `viton_hd` without its defects.

    It does not erode what is protected, fills no protected island, drops no blob, keeps arms in the picture, and does
    not leave the outermost pixels of the picture out.

    Args:
        labels: (H, W).
        points: (18, 2), x and y in the map's pixels.
        garment: one of `GARMENTS`.

    Returns:
        (H, W).
    """
    scale = len(labels) / OFFICIAL_SIZE[0]
    painted, fixed = _hd_parts(labels, points, garment, scale, _arm)
    fixed = fixed | _any_of(labels, HD_HEAD)
    return ndimage.binary_fill_holes(painted & ~fixed) & ~fixed


def viton_hd(labels: Labels, points: Points, garment: str) -> Mask:
    """The official rule for virtual_tryon. `labels` are (512, 384); else as `clean`."""
    painted, fixed = _hd_parts(labels, points, garment, 1.0, _official_arm)
    # A rim around what is protected is protected no more. Where the rim is closed, it is filled in the next step.
    fixed = ~_dilated(~fixed, 2, 2) | _any_of(labels, HD_HEAD)
    return _largest_blob(_filled(painted & ~fixed))


def dress_code(labels: Labels, points: Points, garment: str) -> Mask:
    """The official rule for virtual_tryon_dc. `labels` are (512, 384); else as `clean`."""
    fixed = _any_of(labels, DC_FIXED | OTHER_GARMENTS[garment])
    changeable = ~fixed
    area, head = _any_of(labels, DC_GARMENT[garment]), _any_of(labels, DC_HEAD)
    if garment != LOWER_BODY:
        arms = _dilated(_drawn(labels.shape, lambda draw: _draw_both_arms(draw, points)), 10, 10)
        fixed = fixed | (_any_of(labels, {p.LEFT_ARM, p.RIGHT_ARM}) & ~arms)
        above = _above_shoulders(labels.shape, points)
        area = area | arms | (head & ~above)
        head = head & above
    painted = ~changeable | _dilated(area, 20, 25)
    return _filled(painted & ~(fixed | head))


def _hd_parts(
    labels: Labels, points: Points, garment: str, scale: float, arm: Callable[..., Mask | None]
) -> tuple[Mask, Mask]:
    """What may be painted, and what must not be, apart from the head."""
    fixed = _any_of(labels, HD_FIXED | OTHER_GARMENTS[garment])
    changeable, head = ~fixed, _any_of(labels, HD_HEAD)
    area = _dilated(_any_of(labels, HD_GARMENT[garment]), _scaled(20, scale), _scaled(25, scale))
    if garment != LOWER_BODY:
        neck = _scaled(2, scale)
        area = area | (_dilated(labels == p.NECK, neck, neck) & ~head)
        reach = _scaled(8, scale)
        for label, *joints in ARMS:
            parsed = labels == label
            drawn = arm(labels.shape, points[joints], _scaled(60, scale), label == p.LEFT_ARM)
            drawn = parsed if drawn is None else drawn
            fixed = fixed | (parsed & ~drawn)  # the hand
            area = area | _dilated(drawn, reach, reach)
    return ~changeable | area, fixed


def _official_arm(shape: tuple[int, int], joints: Points, width: int, is_left: bool) -> Mask | None:
    """The arm as a line to a wrist pushed outward; None without wrist. The left one begins at the wrist."""
    shoulder, elbow, wrist = joints
    if _is_missing(wrist):
        return None
    line = numpy.stack([shoulder, elbow, _pushed(wrist, elbow)])[:: -1 if is_left else 1]
    # The official coordinates have 16 bits without sign: what lies left of or above the picture comes out far right.
    return _drawn_arm(shape, [int(value) & 0xFFFF for value in line.ravel()], shoulder, width)


def _arm(shape: tuple[int, int], joints: Points, width: int, is_left: bool) -> Mask | None:
    """The arm through those of its joints that were found, to a wrist pushed outward; None without wrist."""
    shoulder, elbow, wrist = joints
    inner = [joint for joint in (shoulder, elbow) if not _is_missing(joint)]
    if _is_missing(wrist) or not inner:
        return None
    line = numpy.stack([*inner, _pushed(wrist, inner[-1])])
    return _drawn_arm(shape, line.ravel().tolist(), inner[0], width)


def _is_missing(joint: Points) -> bool:
    return bool(joint[0] <= 1 and joint[1] <= 1)


def _pushed(wrist: Points, elbow: Points) -> Points:
    return elbow + 1.2 * (wrist - elbow)


def _drawn_arm(shape: tuple[int, int], line: list[float], shoulder: Points, width: int) -> Mask:
    half = width // 2
    disc = [shoulder[0] - half, shoulder[1] - half, shoulder[0] + half, shoulder[1] + half]

    def draw(canvas: ImageDraw.ImageDraw) -> None:
        canvas.line(line, 255, width, "curve")
        canvas.arc(disc, 0, 360, 255, half)

    return _drawn(shape, draw)


def _draw_both_arms(draw: ImageDraw.ImageDraw, points: Points) -> None:
    """One line from wrist to wrist, as the official rule shortens it: on the right if that wrist is missing."""
    right = [points[joint] for joint in (p.SHOULDER_RIGHT, p.ELBOW_RIGHT, p.WRIST_RIGHT)]
    left = [points[joint] for joint in (p.WRIST_LEFT, p.ELBOW_LEFT, p.SHOULDER_LEFT)]
    if _is_missing(right[2]):
        right = right[:1] if _is_missing(right[1]) else right[:2]
    elif _is_missing(left[0]):
        left = left[2:] if _is_missing(left[1]) else left[1:]
    draw.line([tuple(point) for point in (*left, *right)], 255, 30, "curve")


def _drawn(shape: tuple[int, int], draw: Callable[[ImageDraw.ImageDraw], None]) -> Mask:
    canvas = Image.new("L", (shape[1], shape[0]))
    draw(ImageDraw.Draw(canvas))
    return numpy.asarray(canvas) > 0


def _above_shoulders(shape: tuple[int, int], points: Points) -> Mask:
    """What lies more than 20 pixels above the straight line through the shoulders."""
    x, y = points[[p.SHOULDER_RIGHT, p.SHOULDER_LEFT]].T
    slope, offset = numpy.linalg.lstsq(numpy.stack([x, numpy.ones(2)], axis=1), y, rcond=None)[0]
    above = numpy.ones(shape, dtype=bool)
    for column in range(shape[1]):
        above[int(column * slope + offset - 20) :, column] = False  # from the bottom if negative, as officially
    return above


def _any_of(labels: Labels, wanted: set[int]) -> Mask:
    return numpy.isin(labels, list(wanted))


def _scaled(pixels: int, scale: float) -> int:
    return round(pixels * scale)


def _dilated(mask: Mask, before: int, after: int) -> Mask:
    """Grows a mask by a box: `before` pixels up and left, `after` pixels down and right."""
    for axis in (0, 1):
        padding = [(0, 0), (0, 0)]
        padding[axis] = (after + 1, before)
        sums = numpy.cumsum(numpy.pad(mask, padding), axis=axis, dtype=numpy.int32)
        size = mask.shape[axis]
        mask = sums.take(range(after + before + 1, after + before + 1 + size), axis) > sums.take(range(size), axis)
    return mask


def _filled(mask: Mask) -> Mask:
    """Without the outermost pixels, and with all holes filled."""
    inner = numpy.zeros_like(mask)
    inner[1:-1, 1:-1] = mask[1:-1, 1:-1]
    return ndimage.binary_fill_holes(inner)


def _largest_blob(mask: Mask) -> Mask:
    """The blob with the largest outline, filled, as the official rule draws it: with corners cut by a pixel or two."""
    blobs, number = ndimage.label(mask, structure=numpy.ones((3, 3)))
    if number == 0:
        return mask
    outlines = [outline.dominant_points(*outline.border(blobs == blob)) for blob in range(1, number + 1)]
    return outline.filled(max(outlines, key=outline.area), mask.shape)
