"""Labels read back from the colours they were drawn in, also from a lossy or smoothly scaled picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

Pixels = NDArray[numpy.uint8]
Labels = NDArray[numpy.uint8]
Colour = tuple[int, int, int]

# How far, in pixels, JPEG spreads the colours of an edge enough to matter
REACH = 6
# JPEG halves the resolution of colour but not of brightness, so brightness tells more.
BRIGHTNESS = numpy.array([0.299, 0.587, 0.114], dtype=numpy.float32)
CHROMA_WEIGHT = 0.03


def to_bytes(picture: Tensor) -> Pixels:
    """(H, W, 1 or more) in [0, 1] -> (H, W, 3)."""
    pixels = (picture[..., :3].float().clamp(0, 1) * 255).round().cpu().numpy().astype(numpy.uint8)
    return numpy.broadcast_to(pixels, (*pixels.shape[:2], 3))


def nearest(pixels: Pixels, palette: Sequence[Colour]) -> tuple[Labels, NDArray[numpy.float32]]:
    """The place in the palette of the colour nearest to each pixel, and the distance to it.

    Args:
        pixels: (..., 3).
        palette: at most 256 colours.

    Returns:
        (...) each.
    """
    values = pixels.astype(numpy.float32)
    best = numpy.zeros(pixels.shape[:-1], dtype=numpy.uint8)
    distance = numpy.full(pixels.shape[:-1], numpy.inf, dtype=numpy.float32)
    for place, colour in enumerate(palette):
        other = numpy.square(values - numpy.array(colour, dtype=numpy.float32)).sum(axis=-1)
        closer = other < distance
        best[closer] = place
        distance[closer] = other[closer]
    return best, numpy.sqrt(distance)


def read(pixels: Pixels, palette: Sequence[Colour]) -> Labels:
    """The place in the palette of each pixel's colour.

    A colour that is not in the palette is a mixture, from the edge between two labels. Of the labels that are certain
    nearby, it belongs to the one that it is most like; otherwise it could look like a third one.

    Args:
        pixels: (H, W, 3).
        palette: as of `nearest`.

    Returns:
        (H, W).
    """
    labels, distance = nearest(pixels, palette)
    if distance.max() <= _closest(palette) / 3:
        return labels
    own = ndimage.minimum_filter(labels, 3) == ndimage.maximum_filter(labels, 3)  # no other label beside it
    best = numpy.full(labels.shape, numpy.inf, dtype=numpy.float32)
    found = labels.copy()
    certain = numpy.where(own, labels.astype(numpy.int32) + 1, 0)
    for place, box in enumerate(ndimage.find_objects(certain)):
        if box is None:
            continue
        box = tuple(slice(max(side.start - REACH, 0), side.stop + REACH) for side in box)
        near = ndimage.maximum_filter((certain[box] == place + 1).view(numpy.uint8), 2 * REACH + 1) > 0
        unlike = _unlike(pixels[box], palette[place])
        closer = near & (unlike < best[box])
        best[box][closer] = unlike[closer]
        found[box][closer] = place
    return numpy.where(own, labels, found)


def resized(labels: Labels, size: tuple[int, int]) -> Labels:
    """(H, W) labels at another size, by Pillow's nearest pixel."""
    if labels.shape == size:
        return labels
    return numpy.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))


def _closest(palette: Sequence[Colour]) -> float:
    """The smallest distance between two colours."""
    colours = numpy.array(palette, dtype=numpy.float64)
    distances = numpy.linalg.norm(colours[:, None] - colours, axis=-1)
    return float(distances[numpy.triu_indices(len(colours), 1)].min())


def _unlike(pixels: Pixels, colour: Colour) -> NDArray[numpy.float32]:
    """(H, W, 3) -> (H, W) difference of each pixel from a colour."""
    difference = pixels.astype(numpy.float32) - numpy.array(colour, dtype=numpy.float32)
    brightness = difference @ BRIGHTNESS
    return numpy.square(brightness) + CHROMA_WEIGHT * numpy.square(difference - brightness[..., None]).sum(axis=-1)
