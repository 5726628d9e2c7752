"""Pictures fitted into others of a certain size, as whole numbers of 8 bits."""

from __future__ import annotations

import numpy
from numpy.typing import NDArray
from PIL import Image

from .regions import opencv

Pixels = NDArray[numpy.uint8]
WHITE = 255


def on_white(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Scales a picture, by OpenCV's cubic filter, until it fits, and puts it in the middle of a white one.

    Args:
        pixels: (H, W, 3).
        size: (height, width) of the result.

    Returns:
        (height, width, 3).
    """
    cv2 = opencv()
    height, width = pixels.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    new_height, new_width = max(int(height * scale), 1), max(int(width * scale), 1)
    canvas = numpy.full((*size, 3), WHITE, dtype=numpy.uint8)
    top, left = (size[0] - new_height) // 2, (size[1] - new_width) // 2
    scaled = cv2.resize(numpy.ascontiguousarray(pixels), (new_width, new_height), interpolation=cv2.INTER_CUBIC)
    canvas[top : top + new_height, left : left + new_width] = scaled
    return canvas


def object_on_white(pixels: Pixels, alpha: Pixels, size: tuple[int, int]) -> Pixels:
    """Cuts out a square around what is opaque, scales it to the width of a white picture, and puts it in the middle.

    Args:
        pixels: (H, W, 3).
        alpha: (H, W), 0 is transparent.
        size: (height, width) of the result, not wider than high.

    Returns:
        (height, width, 3).

    Raises:
        ValueError: nothing is opaque.
    """
    picture = Image.fromarray(numpy.dstack([pixels, alpha]))
    box = picture.getchannel("A").getbbox()
    if box is None:
        raise ValueError("The mask says that the whole image is transparent. Connect a garment that is cut out.")
    (left, top, right, bottom), (height, width) = box, size
    side = max(right - left, bottom - top)
    x, y = (
        _inside(start + (end - start) // 2 - side // 2, side, limit)
        for start, end, limit in ((left, right, picture.width), (top, bottom, picture.height))
    )
    square = picture.crop((x, y, x + side, y + side))
    scaled = square.resize((width, width), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (width, height), (WHITE, WHITE, WHITE, WHITE))
    canvas.paste(scaled, (0, (height - width) // 2), scaled)
    return numpy.asarray(canvas.convert("RGB"))


def _inside(start: int, side: int, limit: int) -> int:
    """Moves a stretch into a picture; one that is longer than it ends where the picture does."""
    return limit - side if max(start, 0) + side > limit else max(start, 0)
