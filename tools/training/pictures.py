"""Pictures from files, by Pillow and torchvision's transforms."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as v2

LANCZOS, NEAREST = InterpolationMode.LANCZOS, InterpolationMode.NEAREST
BICUBIC, BILINEAR = InterpolationMode.BICUBIC, InterpolationMode.BILINEAR
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


class Crop:
    """A part of a picture of one size, of a scaled picture that covers that size, as near to a place as may be.

    Args:
        shape: (height, width) of the picture.
        size: (height, width) of the part.
        centre: (y, x) in the picture's pixels; None = its middle.
    """

    def __init__(self, shape: Size, size: Size, centre: tuple[float, float] | None = None) -> None:
        self._size = size
        self.scale = max(size[0] / shape[0], size[1] / shape[1])
        self._scaled = [max(round(side * self.scale), wanted) for side, wanted in zip(shape, size, strict=True)]
        middle = centre or (shape[0] / 2, shape[1] / 2)
        self._top_left = [
            min(max(round(at * self.scale - wanted / 2), 0), side - wanted)
            for at, wanted, side in zip(middle, size, self._scaled, strict=True)
        ]

    def picture(self, image: Tensor) -> Tensor:
        """Cuts a picture (H, W, C) in [0, 1]."""
        return self._cut(image, BICUBIC).clamp(0, 1)

    def mask(self, mask: Tensor) -> Tensor:
        """Cuts a mask (H, W) of 0 and 1."""
        return (self._cut(mask.unsqueeze(-1), BILINEAR)[..., 0] >= 0.5).float()

    def map(self, values: Tensor) -> Tensor:
        """Cuts a map (H, W, C) of values that must not be mixed."""
        return self._cut(values, NEAREST)

    def _cut(self, image: Tensor, how: InterpolationMode) -> Tensor:
        scaled = v2.resize(image.movedim(-1, 0), self._scaled, how, antialias=how != NEAREST)
        return v2.crop(scaled, *self._top_left, *self._size).movedim(0, -1).contiguous()


def _tensor(image: Image.Image, size: Size | None, how: InterpolationMode) -> Tensor:
    if size is not None and (image.height, image.width) != size:
        image = v2.resize(image, list(size), how)
    return v2.to_dtype(v2.pil_to_tensor(image), torch.float32, scale=True).movedim(0, -1)


def _indices(image: Image.Image) -> Tensor:
    import numpy

    return torch.from_numpy(numpy.array(image)).unsqueeze(0)
