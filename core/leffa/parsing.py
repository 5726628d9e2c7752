"""Human-parsing maps, in the forms that common nodes give them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from .palette import Colour, Labels, Pixels, nearest, read, to_bytes

# Labels of the ATR data set, and the neck that Leffa's own parser adds
BACKGROUND, HAT, HAIR, SUNGLASSES, UPPER, SKIRT, PANTS, DRESS, BELT, LEFT_SHOE, RIGHT_SHOE = range(11)
HEAD, LEFT_LEG, RIGHT_LEG, LEFT_ARM, RIGHT_ARM, BAG, SCARF, NECK = range(11, 19)

ATR, LIP, AUTO = "ATR", "LIP", "auto"
LIP_PANTS, LIP_OVERALL, LIP_FACE = 9, 10, 13
LIP_TOPS = [5, 6, 7]  # upper clothes, dress, coat
# LIP label -> the ATR label that the mask rules treat the same way
LIP_TO_ATR = numpy.array(
    [
        BACKGROUND, HAT, HAIR, BAG, SUNGLASSES, UPPER, DRESS, UPPER, LEFT_SHOE, PANTS, DRESS, SCARF, SKIRT, HEAD,
        LEFT_ARM, RIGHT_ARM, LEFT_LEG, RIGHT_LEG, LEFT_SHOE, RIGHT_SHOE,
    ],
    dtype=numpy.uint8,
)  # fmt: skip

# The colours in which Graphonomy and other parsers draw LIP's labels
GRAPHONOMY: list[Colour] = [
    (0, 0, 0), (128, 0, 0), (255, 0, 0), (0, 85, 0), (170, 0, 51), (255, 85, 0), (0, 0, 85), (0, 119, 221),
    (85, 85, 0), (0, 85, 85), (85, 51, 0), (52, 86, 128), (0, 128, 0), (0, 0, 255), (51, 170, 221), (0, 255, 255),
    (85, 255, 170), (170, 255, 85), (255, 255, 0), (255, 170, 0),
]  # fmt: skip
# A pixel this far from every colour of a palette is a mixture, and of a map's drawn pixels few are.
FAR = 16.0
LEAST_SHARE = 0.7

SHOULDER_RIGHT, ELBOW_RIGHT, WRIST_RIGHT, SHOULDER_LEFT, ELBOW_LEFT, WRIST_LEFT = range(2, 8)


def labels_of(picture: Tensor, data_set: str) -> Labels:
    """Reads a parsing map: grey values that are label numbers, or the colours in which parsers draw labels.

    Args:
        picture: (H, W, C) in [0, 1].
        data_set: `ATR` or `LIP`, whose numbers the map holds; `AUTO` tells them apart by what the map shows.

    Returns:
        (H, W) ATR labels.

    Raises:
        ValueError: a colour that stands for no label, labels of the other data set, or labels that fit both.
    """
    numbers, found = _numbers(to_bytes(picture))
    found = found or data_set_of(numbers)
    if data_set == AUTO and found is None and numbers.any():
        raise ValueError(
            f"parsing holds the labels {numpy.unique(numbers).tolist()}, which do not tell the data set (ATR, LIP): "
            "set labels to that of the parser. Maps of body parts alone (Pascal) say nothing about garments."
        )
    if data_set != AUTO and found not in (None, data_set):
        raise ValueError(
            f"parsing holds {found} labels {numpy.unique(numbers).tolist()}, but labels is {data_set}, where the same "
            f"numbers mean other garments. Set labels to {found}, or to {AUTO}."
        )
    return _as_atr(numbers) if LIP in (data_set, found) else numbers


def data_set_of(numbers: Labels) -> str | None:
    """Whose labels a map holds, by where the face is: 11 in ATR, 13 in LIP. None if that cannot be told.

    Args:
        numbers: (H, W).
    """
    present = set(numpy.unique(numbers).tolist())
    if max(present) > NECK:
        return LIP
    head, face = (numbers == number for number in (HEAD, LIP_FACE))
    hair = ndimage.maximum_filter((numbers == HAIR).view(numpy.uint8), 3) > 0
    contact = int((hair & head).sum()), int((hair & face).sum())
    if any(contact):
        return ATR if contact[0] >= contact[1] else LIP
    if head.any() and face.any():
        return ATR if _row(head) < _row(face) else LIP
    if head.any():
        return ATR
    if face.any():  # or a right leg
        return LIP if _row(face) < _row(numbers > 0) else ATR
    return _data_set_without_face(numbers, present)


def _data_set_without_face(numbers: Labels, present: set[int]) -> str | None:
    """Of a picture that shows only a part of a person."""
    size = (numbers > 0).sum()
    if max(present) <= PANTS and (numbers == SUNGLASSES).sum() > 0.02 * size:
        return None  # body parts rather than garments
    if UPPER in present:  # sunglasses in LIP
        return ATR
    if LIP_PANTS in present and RIGHT_SHOE not in present:  # a left shoe alone in ATR
        return LIP
    return ATR if PANTS in present and RIGHT_SHOE in present else None


def _row(mask: NDArray[numpy.bool_]) -> float:
    return float(numpy.nonzero(mask)[0].mean())


def _as_atr(numbers: Labels) -> Labels:
    """LIP labels as the ATR labels that the mask rules treat the same way."""
    labels = LIP_TO_ATR[numbers]
    # CIHP, which shares the other labels, has the skin of neck and chest where LIP has jumpsuits.
    overall = numbers == LIP_OVERALL
    if overall.sum() < numpy.isin(numbers, LIP_TOPS).sum():
        labels[overall] = NECK
    return labels


def _numbers(pixels: Pixels) -> tuple[Labels, str | None]:
    """The label numbers of a map, and whose they are if its colours tell."""
    if (pixels == pixels[..., :1]).all() and pixels.max() < len(LIP_TO_ATR):
        return pixels[..., 0], None
    customary = [_colour(label) for label in range(len(LIP_TO_ATR))]
    near = {name: _near(pixels, colours) for name, colours in (("", customary), (LIP, GRAPHONOMY))}
    name = max(near, key=lambda name: near[name].mean())
    drawn = near[name] & (pixels.max(axis=-1) > FAR)
    if drawn.sum() < LEAST_SHARE * (drawn | ~near[name]).sum():
        row, column = numpy.argwhere(~near[name])[0]
        raise ValueError(
            f"parsing is no map of labels: pixel ({column}, {row}) has the colour {pixels[row, column].tolist()}. Give "
            "label numbers as grey values, or the colours of the parser, unscaled or scaled with nearest-exact."
        )
    return read(pixels, GRAPHONOMY if name else customary), name or None


def _near(pixels: Pixels, colours: Sequence[Colour]) -> NDArray[numpy.bool_]:
    return nearest(pixels, colours)[1] <= FAR


def _colour(label: int) -> Colour:
    """The customary colour of a label: its bits, three at a time, from the highest bit of red, green, blue down."""
    red, green, blue = (
        sum((label >> (3 * place + channel) & 1) << (7 - place) for place in range(8)) for channel in range(3)
    )
    return red, green, blue
