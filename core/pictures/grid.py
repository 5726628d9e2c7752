"""Conversions between ComfyUI's pictures and masks, Pillow's, and the grids of latents."""

from __future__ import annotations

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

CELL = 8  # pixels of a latent, each way


def pad_to_cells(picture: Tensor, cell: int = CELL) -> Tensor:
    """Repeats the last row and column until both sides are multiples of a cell.

    Args:
        picture: (B, H, W, C).

    Returns:
        (B, H', W', C) with H <= H' < H + cell, and W' likewise.
    """
    height, width = picture.shape[1:3]
    padding = (0, -width % cell, 0, -height % cell)
    return F.pad(picture.movedim(-1, 1), padding, mode="replicate").movedim(1, -1)


def unpadded(picture: Tensor, like: Tensor, name: str, other: str) -> Tensor:
    """The part of a picture that was not added by `pad_to_cells`, at the size it had before.

    Args:
        picture: (B, h, w, C), as large as `like` or as it is padded, or an enlarged or reduced version of that.
        like: (B, H, W, C), what was padded.
        name, other: of both, for messages.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: it has another shape, so that it is no picture made from `like`.
    """
    height, width = like.shape[1:3]
    sizes = (height, width), (height + -height % CELL, width + -width % CELL)
    nearest = min(sizes, key=lambda size: (tuple(picture.shape[1:3]) != size, _stretch(picture, size)))
    if _stretch(picture, nearest) > 1:
        raise ValueError(
            f"{name} is {picture.shape[2]} x {picture.shape[1]} pixels and does not fit {other} with its {width} x "
            f"{height}. Connect the picture that was generated for {other}."
        )
    return resized(picture, nearest)[:, :height, :width]


def _stretch(picture: Tensor, size: tuple[int, int]) -> float:
    """How far a picture's shape is from that of a size; up to 1 comes from rounding both sides to pixels."""
    aspect = size[1] / size[0]
    return abs(picture.shape[2] - picture.shape[1] * aspect) / (0.5 + 0.5 * aspect)


def resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W, C) in [0, 1] at another size."""
    if tuple(picture.shape[1:3]) == size:
        return picture
    planes = F.interpolate(picture.movedim(-1, 1), size, mode="bicubic", antialias=True)
    return planes.movedim(1, -1).clamp(0, 1)


def to_cells(picture: Tensor) -> Tensor:
    """The upper left pixel of each 8 x 8 cell, as Leffa brings masks and body maps to the size of the latent.

    Args:
        picture: (B, H, W, C), sides multiples of 8.

    Returns:
        (B, C, H / 8, W / 8).
    """
    return picture[:, ::CELL, ::CELL].movedim(-1, 1).contiguous()


def binary_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask of any size as 0 and 1 at a picture's size: scaled by Pillow's bicubic filter, 1 from a half on.

    Args:
        mask: (B, h, w) in [0, 1].
        size: (H, W).

    Returns:
        (B, H, W) float.
    """
    if tuple(mask.shape[-2:]) != size:
        images = [Image.fromarray((one * 255).round().to(torch.uint8).numpy()) for one in mask]
        scaled = [image.resize((size[1], size[0]), Image.Resampling.BICUBIC) for image in images]
        mask = torch.stack([torch.from_numpy(numpy.asarray(image).copy()) for image in scaled]) / 255
    return (mask >= 0.5).float()


def to_pillow(picture: Tensor) -> Image.Image:
    """(H, W, 3) in [0, 1] as Pillow has it."""
    return Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
