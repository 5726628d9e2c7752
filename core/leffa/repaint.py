"""Pasting what was repainted into the picture it belongs to."""

from __future__ import annotations

import numpy
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from ..patches.progress import each_of
from ..pictures.grid import binary_mask


def soft_edge(mask: Tensor) -> Tensor:
    """Blurs a mask as Leffa does: Pillow's Gaussian filter with the next odd radius to a hundredth of the height.

    Args:
        mask: (B, H, W), 0 and 1.

    Returns:
        (B, H, W) float64 in [0, 1], in steps of 1/255.
    """
    radius = mask.shape[1] // 100
    blur = ImageFilter.GaussianBlur(radius + 1 if radius % 2 == 0 else radius)
    blurred = [Image.fromarray((one * 255).to(torch.uint8).numpy()).filter(blur) for one in each_of(mask.unbind())]
    return torch.stack([torch.from_numpy(numpy.asarray(one) / 255) for one in blurred])


def paste_official(picture: Tensor, painted: Tensor, mask: Tensor) -> Tensor:
    """Leffa's own pasting: the soft edge reaches beyond the mask, and pixels are whole numbers, rounded down.

    Args:
        picture, painted: (B, H, W, 3) in [0, 1].
        mask: (B, H, W) of any size, 1 = painted.

    Returns:
        (B, H, W, 3).
    """
    weight = soft_edge(binary_mask(mask, (picture.shape[1], picture.shape[2]))).unsqueeze(-1)
    old, new = ((each.cpu() * 255).round().double() for each in (picture, painted))
    return ((old * (1 - weight) + new * weight).floor() / 255).float()


def paste_exact(picture: Tensor, painted: Tensor, mask: Tensor) -> Tensor:
    """Pasting with the soft edge inside the mask; every pixel outside is the picture's own, to the bit.

    Arguments and result are those of `paste_official`.
    """
    binary = binary_mask(mask, (picture.shape[1], picture.shape[2]))
    weight = soft_edge(binary).unsqueeze(-1).float()
    blended = torch.lerp(picture.cpu(), painted.cpu(), weight)
    return torch.where(binary.unsqueeze(-1) > 0, blended, picture.cpu())
