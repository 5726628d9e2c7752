"""Human-parsing maps and keypoints, as the nodes that people already have give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Labels = NDArray[numpy.uint8]

# Labels of the ATR data set, and the neck that Leffa's own parser adds
BACKGROUND, HAT, HAIR, SUNGLASSES, UPPER, SKIRT, PANTS, DRESS, BELT, LEFT_SHOE, RIGHT_SHOE = range(11)
HEAD, LEFT_LEG, RIGHT_LEG, LEFT_ARM, RIGHT_ARM, BAG, SCARF, NECK = range(11, 19)

ATR, LIP = "ATR", "LIP"
# LIP label -> the ATR label that the mask rules treat the same way
LIP_TO_ATR = numpy.array(
    [
        BACKGROUND, HAT, HAIR, BAG, SUNGLASSES, UPPER, DRESS, UPPER, LEFT_SHOE, PANTS, DRESS, SCARF, SKIRT, HEAD,
        LEFT_ARM, RIGHT_ARM, LEFT_LEG, RIGHT_LEG, LEFT_SHOE, RIGHT_SHOE,
    ],
    dtype=numpy.uint8,
)  # fmt: skip

SHOULDER_RIGHT, ELBOW_RIGHT, WRIST_RIGHT, SHOULDER_LEFT, ELBOW_LEFT, WRIST_LEFT = range(2, 8)


def labels_of(picture: Tensor, data_set: str) -> Labels:
    """Reads a parsing map: grey values that are label numbers, or the colours in which parsers draw labels.

    Args:
        picture: (H, W, C) in [0, 1].
        data_set: `ATR` or `LIP`, whose numbers the map holds.

    Returns:
        (H, W) ATR labels.

    Raises:
        ValueError: a colour that stands for no label.
    """
    pixels = (picture[..., :3] * 255).round().cpu().numpy().astype(numpy.uint8)
    number = len(LIP_TO_ATR) if data_set == LIP else NECK + 1
    if (pixels == pixels[..., :1]).all() and pixels.max() < number:
        labels = pixels[..., 0]
    else:
        labels = _from_colours(pixels, number)
    return LIP_TO_ATR[labels] if data_set == LIP else labels


def _from_colours(pixels: NDArray[numpy.uint8], number: int) -> Labels:
    labels = numpy.full(pixels.shape[:2], 255, dtype=numpy.uint8)
    for label in range(number):
        labels[(pixels == _colour(label)).all(axis=-1)] = label
    if (labels == 255).any():
        row, column = numpy.argwhere(labels == 255)[0]
        raise ValueError(
            f"parsing is no map of labels: pixel ({column}, {row}) has the colour {pixels[row, column].tolist()}. Give "
            "label numbers as grey values, or the colours of the parser, unscaled or scaled with nearest-exact."
        )
    return labels


def _colour(label: int) -> list[int]:
    """The customary colour of a label: its bits, three at a time, from the highest bit of red, green, blue down."""
    colour = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            colour[channel] |= (label >> (3 * place + channel) & 1) << (7 - place)
    return colour


def keypoints_of(frame: dict[str, Any], size: tuple[int, int]) -> NDArray[numpy.float64]:
    """The body points of the first person of an OpenPose frame.

    Args:
        frame: "people" with "pose_keypoints_2d" (x, y, confidence), "canvas_width" and "canvas_height".
        size: (H, W) of the picture that the points are wanted for.

    Returns:
        (points, 2) x and y in pixels of that picture, (0, 0) where a point was not found.

    Raises:
        ValueError: nobody in the frame, or not the points down to the wrists.
    """
    people: Sequence[dict[str, Any]] = frame.get("people") or []
    if not people:
        raise ValueError("keypoints hold no person. Choose a pose detector that finds the one in the picture.")
    points = numpy.array(people[0].get("pose_keypoints_2d") or [], dtype=numpy.float64).reshape(-1, 3)
    if len(points) <= WRIST_LEFT:
        raise ValueError(
            f"keypoints hold {len(points)} body points, but the mask needs those of OpenPose, of which the wrists are "
            f"number {WRIST_RIGHT} and {WRIST_LEFT}. Switch on the body in the pose detector."
        )
    canvas = numpy.array([frame["canvas_width"], frame["canvas_height"]], dtype=numpy.float64)
    found = points[:, 2:] > 0
    places = points[:, :2] * (canvas if points[:, :2].max() <= 1 else 1)  # some detectors give shares of the canvas
    return numpy.where(found, places * (numpy.array(size[::-1]) / canvas), 0.0)


def resized(labels: Labels, size: tuple[int, int]) -> Labels:
    """(H, W) labels at another size, by Pillow's nearest pixel."""
    if labels.shape == size:
        return labels
    return numpy.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
