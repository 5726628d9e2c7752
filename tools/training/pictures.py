"""Pictures from files, by Pillow and torchvision's transforms."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as v2

LANCZOS, NEAREST = InterpolationMode.LANCZOS, InterpolationMode.NEAREST
Size = tuple[int, int]  # (height, width)


def picture(path: Path, size: Size | None = None, how: InterpolationMode = LANCZOS) -> Tensor:
    """A picture in [0, 1], (H, W, 3); what is transparent is white. Stretched to a size, if one is given."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return _tensor(image.convert("RGB"), size, how)


def mask(path: Path, size: Size | None = None) -> Tensor:
    """A mask of 0 and 1, (H, W); 1 from half brightness on."""
    with Image.open(path) as file:
        return (_tensor(ImageOps.exif_transpose(file).convert("L"), size, LANCZOS)[..., 0] >= 0.5).float()


def labels(path: Path) -> Tensor:
    """A map of labels as it is in its file, palette or grey, (H, W, 3) in [0, 1]."""
    with Image.open(path) as file:
        grey = file if file.mode in ("P", "L") else file.convert("RGB")
        pixels = v2.pil_to_tensor(grey) if grey.mode != "P" else _indices(grey)
    return (pixels.float() / 255).movedim(0, -1).expand(-1, -1, 3)


def cropped(image: Tensor, size: Size) -> tuple[Tensor, float]:
    """A picture (H, W, C) scaled until it covers a size, and cut to it around the middle; with the scale."""
    scale = max(size[0] / image.shape[0], size[1] / image.shape[1])
    inner = [max(round(side * scale), wanted) for side, wanted in zip(image.shape[:2], size, strict=True)]
    scaled = v2.resize(image.movedim(-1, 0), inner, InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    return v2.center_crop(scaled, list(size)).movedim(0, -1), scale


def flipped(*images: Tensor) -> tuple[Tensor, ...]:
    """Pictures (H, W, C) or masks (H, W) seen in a mirror."""
    return tuple(each.flip(1) for each in images)


def _tensor(image: Image.Image, size: Size | None, how: InterpolationMode) -> Tensor:
    if size is not None and (image.height, image.width) != size:
        image = v2.resize(image, list(size), how)
    return v2.to_dtype(v2.pil_to_tensor(image), torch.float32, scale=True).movedim(0, -1)


def _indices(image: Image.Image) -> Tensor:
    import numpy

    return torch.from_numpy(numpy.array(image)).unsqueeze(0)
