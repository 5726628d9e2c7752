"""Persons and garments at the size that Leffa was trained with, as the authors' application prepares them."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from ..patches.progress import each_of
from ..pictures.fit import object_on_white, on_white
from .palette import to_bytes


def fit(image: Tensor, size: tuple[int, int], transparent: Tensor | None = None) -> Tensor:
    """Pictures on white.

    Args:
        image: (B, H, W, C) in [0, 1].
        size: (height, width) of the result.
        transparent: (1 or B, H, W) in [0, 1]; given, the square around what is not transparent is fitted, else all.

    Returns:
        (B, height, width, 3) in [0, 1], in steps of 1/255.

    Raises:
        ValueError: everything is transparent.
    """
    fitted = []
    for number, picture in enumerate(each_of(image.unbind())):
        pixels = to_bytes(picture)
        if transparent is None:
            fitted.append(on_white(pixels, size))
            continue
        alpha = to_bytes(1 - transparent[number % len(transparent)].float().unsqueeze(-1))[..., 0]
        fitted.append(object_on_white(pixels, alpha, size))
    return torch.from_numpy(numpy.stack(fitted).astype(numpy.float32)) / 255
