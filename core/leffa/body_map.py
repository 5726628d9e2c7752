"""DensePose pictures: which kind one is, and what each Leffa checkpoint needs of it.

DensePose says of each pixel which of 24 parts of the body it shows (I) and where on that part it lies (U, V). Tools
write that down in different ways. Part numbers can be had from all of them, U and V only from those that hold them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from ..patches.progress import each_of
from .palette import Colour, Labels, Pixels, nearest, read, resized, to_bytes

PARULA, VIRIDIS, PARTS, IUV, UVI, VUI = "Parula", "Viridis", "part numbers", "IUV", "UVI", "VUI"
METADATA = "body_map"  # what a trained file says of the kind that it needs
BLACK, PHOTOGRAPH = "black", "photograph"
FORMATS = [PARULA, VIRIDIS, PARTS, IUV, UVI]
# Where I, U and V lie in the channels of a picture
CHANNELS = {IUV: (0, 1, 2), UVI: (2, 0, 1), VUI: (2, 1, 0)}
# What the published checkpoints were trained with
NEEDED_BY = {PARULA: "virtual_tryon", PARTS: "virtual_tryon_dc", UVI: "pose_transfer"}
TRY_ON, POSE_TRANSFER = (PARULA, PARTS), (UVI,)
NUMBER_OF_PARTS = 24
# Detectors round the sides of what they are given, some to whole blocks of 64 pixels.
SLACK = 0.1  # of the ratio of its sides
MAKE = "Leffa DensePose makes one, and so does the DensePose Estimator of comfyui_controlnet_aux."

# OpenCV's colour maps at int(part * 255 / 24)
COLOURS: dict[str, list[Colour]] = {
    PARULA: [
        (53, 42, 135), (37, 60, 163), (20, 80, 194), (4, 97, 223), (8, 110, 221), (14, 122, 216), (20, 132, 212),
        (15, 144, 208), (11, 156, 203), (6, 166, 198), (22, 173, 185), (38, 179, 172), (55, 185, 159), (86, 187, 144),
        (114, 189, 130), (145, 191, 116), (170, 189, 105), (192, 188, 96), (216, 186, 86), (228, 192, 74),
        (240, 199, 60), (252, 206, 46), (251, 220, 36), (250, 235, 25), (249, 251, 14),
    ],
    VIRIDIS: [
        (68, 1, 84), (71, 16, 99), (72, 31, 112), (71, 44, 122), (68, 57, 131), (64, 70, 136), (59, 81, 139),
        (54, 93, 141), (49, 104, 142), (44, 113, 142), (40, 124, 142), (37, 133, 142), (33, 144, 141), (31, 154, 138),
        (32, 163, 134), (39, 173, 129), (53, 183, 121), (70, 192, 111), (92, 200, 99), (115, 208, 86), (142, 214, 69),
        (170, 220, 50), (197, 224, 33), (226, 228, 24), (253, 231, 37),
    ],
}  # fmt: skip
BACKGROUND: dict[str, Colour] = {PARULA: (0, 0, 0), VIRIDIS: COLOURS[VIRIDIS][0]}

# Of the pixels that show a body in a colour map, so many are at most so far from a colour of it; the rest are edges
# in a lossy or smoothly scaled file. Small files have many of them, but in a photograph 2 % are near by chance.
FAR = 12.0
LEAST_SHARE = 0.25
SAMPLES = 200  # a side: enough to tell a kind
LARGEST_GREY = NUMBER_OF_PARTS + 3  # JPEG overshoots at edges


@dataclass(frozen=True)
class BodyMap:
    """What DensePose found.

    Attributes:
        parts: (H, W) I, 0 to 24.
        uv: (2, H, W) U and V in 0 to 255; None where the picture did not hold them.
    """

    parts: Labels
    uv: Pixels | None = None


def kind_of(pixels: Pixels) -> str:
    """Which kind of DensePose picture this is, by its content; `BLACK` or `PHOTOGRAPH` if it is none.

    Args:
        pixels: (H, W, 3).
    """
    if not pixels.any():
        return BLACK
    if (pixels == pixels[..., :1]).all():
        return PARTS if pixels.max() <= LARGEST_GREY else PHOTOGRAPH
    sample = pixels[:: -(-len(pixels) // SAMPLES), :: -(-pixels.shape[1] // SAMPLES)]
    shares = {kind: _share(sample, kind) for kind in COLOURS}
    kind = max(shares, key=lambda kind: shares[kind])
    if shares[kind] >= LEAST_SHARE:
        return kind
    return next((kind for kind in (UVI, IUV) if _holds_uv(pixels, kind)), PHOTOGRAPH)


def read_map(pixels: Pixels, kind: str) -> BodyMap:
    """Reads a DensePose picture of a kind.

    Args:
        pixels: (H, W, 3).
        kind: one of `FORMATS`, or `VUI`.

    Raises:
        ValueError: its part numbers go beyond 24.
    """
    if kind in COLOURS:
        return BodyMap(_parts(read(pixels, _palette(kind))))
    if kind == PARTS:
        return BodyMap(read(pixels, [(part, part, part) for part in range(NUMBER_OF_PARTS + 1)]))
    parts, *uv = (pixels[..., channel] for channel in CHANNELS[kind])
    if parts.max() > NUMBER_OF_PARTS:
        raise ValueError(
            f"densepose has the number {parts.max()} in the channel that holds the {NUMBER_OF_PARTS} parts in a "
            f"picture of the kind {kind}. Choose another kind, or auto."
        )
    return BodyMap(parts, numpy.stack(uv))


def draw(body: BodyMap, kind: str) -> Pixels:
    """Draws a map as a picture (H, W, 3) of a kind.

    Raises:
        ValueError: U and V are asked for, but not there.
    """
    if kind in COLOURS:
        return numpy.array([BACKGROUND[kind], *COLOURS[kind][1:]], dtype=numpy.uint8)[body.parts]
    if kind == PARTS:
        return body.parts[..., None].repeat(3, axis=-1)
    if body.uv is None:
        raise ValueError(
            f"densepose holds only the parts of the body, but {NEEDED_BY[UVI]} needs U and V as well, which cannot be "
            "had from them. Make the map with Leffa DensePose."
        )
    place, *rest = CHANNELS[kind]
    pixels = numpy.empty((*body.parts.shape, 3), dtype=numpy.uint8)
    pixels[..., place] = body.parts
    pixels[..., rest] = numpy.moveaxis(body.uv, 0, -1)
    return pixels


def convert(densepose: Tensor, kind: str, kind_given: str | None, size: tuple[int, int] | None) -> Tensor:
    """DensePose pictures of any kind as pictures of one kind.

    Args:
        densepose: (B, H, W, C) in [0, 1].
        kind: one of `FORMATS`.
        kind_given: what they are; None to tell it by their content.
        size: (height, width) to bring them to; None leaves theirs.

    Returns:
        (B, height, width, 3) in [0, 1].

    Raises:
        ValueError: no DensePose picture, nobody in it, U and V are missing, or another shape.
    """
    if size is not None:
        require_shape((densepose.shape[1], densepose.shape[2]), size)
    return torch.stack([_converted(picture, kind, kind_given, size) for picture in each_of(densepose.unbind())])


def check(densepose: Tensor, needed: str | None) -> None:
    """Checks that DensePose pictures are of the kind that a checkpoint needs, by the pixels that it looks at.

    Args:
        densepose: (B, H, W, C) in [0, 1].
        needed: None if that is not known.

    Raises:
        ValueError: they are of another kind; says how to get the right one.
    """
    if needed is None:
        return
    for picture in densepose:
        pixels = to_bytes(picture)
        kind = kind_of(pixels)
        if kind in (BLACK, PHOTOGRAPH):
            raise ValueError(_no_body_map(kind))
        if kind != needed:
            raise ValueError(_other_kind(kind, needed))
        if not (pixels != pixels[0, 0]).any():
            raise ValueError(_no_body_map(BLACK))


def require_task(needed: str | None, task: Sequence[str], node: str) -> None:
    """Checks that a checkpoint was trained for what a node does.

    Args:
        needed: the kind that the checkpoint needs; None if that is not known.
        task: the kinds that checkpoints for the node need.

    Raises:
        ValueError: it is for another node.
    """
    if needed is None or needed in task:
        return
    other = "Leffa Try-On" if needed in TRY_ON else "Leffa Pose Transfer"
    raise ValueError(
        f"model is {NEEDED_BY[needed]}, which is for {other}, but {node} needs "
        f"{' or '.join(NEEDED_BY[kind] for kind in task)}. Choose that in Leffa Loader."
    )


def kind_needed(weights: Tensor, is_sdxl: bool, name: str) -> str:
    """Which kind of DensePose picture a checkpoint was trained with.

    Args:
        weights: (C, 12, 3, 3) of the generative U-Net's first convolution.
        is_sdxl: whether the U-Net has the layout of SDXL, as the one for pose transfer has.
        name: of the file, which decides where the weights do not.
    """
    if is_sdxl:
        return UVI
    # These started from zero. Where three equal channels were trained, they stayed equal: colours were never seen.
    channels = weights[:, -3:].float()
    spread = (channels - channels.mean(dim=1, keepdim=True)).norm()
    if 0 < channels.norm() and spread < 0.01 * channels.norm():
        return PARTS
    return PARTS if re.search(r"(^|[^a-z])(dc|dress[-_ ]?code)([^a-z]|$)", name.lower()) else PARULA


def _converted(picture: Tensor, kind: str, kind_given: str | None, size: tuple[int, int] | None) -> Tensor:
    pixels = to_bytes(picture)
    found = kind_of(pixels)
    if kind_given is None or found == BLACK:
        kind_given = found
    if kind_given in (BLACK, PHOTOGRAPH):
        raise ValueError(_no_body_map(kind_given))
    body = read_map(pixels, kind_given)
    if not body.parts.any():
        raise ValueError(_no_body_map(BLACK))
    drawn = draw(body if size is None else _resized(body, size), kind)
    return torch.from_numpy(drawn.astype(numpy.float32)) / 255


def _no_body_map(kind: str) -> str:
    if kind == BLACK:
        return "densepose is empty: DensePose found nobody. Use a picture in which the person is seen better or larger."
    return (
        "densepose is a photograph or another picture, or a map with U and V from a lossy file, but no DensePose "
        f"picture. {MAKE}"
    )


def _other_kind(kind: str, needed: str) -> str:
    came = f"densepose is a picture of the kind {kind}, but {NEEDED_BY[needed]} was trained with {needed}."
    if needed == UVI and kind != IUV:
        return f"{came} U and V cannot be had from it: make the map with Leffa DensePose."
    return f"{came} Put Leffa Body Map between, with the model connected."


def _palette(kind: str) -> Sequence[Colour]:
    """The colour of each part from 0 on, then the other colour that a background may have."""
    other = COLOURS[kind][0] if BACKGROUND[kind] == (0, 0, 0) else (0, 0, 0)
    return [BACKGROUND[kind], *COLOURS[kind][1:], other]


def _parts(places: Labels) -> Labels:
    return numpy.where(places > NUMBER_OF_PARTS, 0, places).astype(numpy.uint8)


def _share(pixels: Pixels, kind: str) -> float:
    """Of the pixels that show no background, how many have a colour of a colour map."""
    places, distance = nearest(pixels, _palette(kind))
    near = distance <= FAR
    background = (_parts(places) == 0) & near
    return float(near[~background].mean()) if not background.all() else float(kind == VIRIDIS)


def _holds_uv(pixels: Pixels, kind: str) -> bool:
    """Part numbers in one channel; in the other two, the background has no position on the body."""
    parts, u, v = (pixels[..., channel] for channel in CHANNELS[kind])
    background = parts == 0
    return bool(parts.max() <= NUMBER_OF_PARTS and (not background.any() or (u == v)[background].mean() > 0.5))


def require_shape(given: tuple[int, int], size: tuple[int, int]) -> None:
    """Checks that a map may be of a picture.

    Args:
        given: (height, width) of the map.
        size: (height, width) of the picture.

    Raises:
        ValueError: it has another shape.
    """
    (height, width), (wanted_height, wanted_width) = given, size
    if abs(height * wanted_width - width * wanted_height) > SLACK * height * wanted_width:
        raise ValueError(
            f"densepose is {width} x {height} pixels, but image is {wanted_width} x {wanted_height}, which is another "
            "shape, so it was made from another picture. Make one from image, with Leffa DensePose for example."
        )


def _resized(body: BodyMap, size: tuple[int, int]) -> BodyMap:
    """By the nearest pixel, because neither part numbers nor U and V across parts can be mixed."""
    uv = None if body.uv is None else numpy.stack([resized(each, size) for each in body.uv])
    return BodyMap(resized(body.parts, size), uv)
