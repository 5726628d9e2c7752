"""From a picture to what the visual encoder takes."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

SQUASH, PAD, CROP = "squash", "pad", "crop"
FITS = [SQUASH, PAD, CROP]
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


def encoder_input(images: Tensor, size: int, fit: str) -> Tensor:
    """Pictures as the visual encoder takes them: 8-bit, resized by PIL's bicubic filter, normalised.

    Args:
        images: (S, height, width, 3 or more) in [0, 1]; channels beyond the third are left out.
        size: side of the encoder's square input.
        fit: what to do with pictures that are not square; "squash" is the official way.

    Returns:
        (S, 3, size, size) float32.

    Note:
        ComfyUI's own CLIP preprocessing resizes by another filter and is off by up to 0.24.
    """
    bytes_ = (images[..., :3] * 255).round().to(torch.uint8).numpy()
    pictures = [resize(Image.fromarray(one), size, fit) for one in bytes_]
    pixels = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])
    return ((pixels.float() / 255 - CLIP_MEAN) / CLIP_STD).movedim(-1, 1).contiguous()


def resize(picture: Image.Image, size: int, fit: str) -> Image.Image:
    """A picture made square."""
    if fit == PAD:
        side = max(picture.size)
        mean = np.asarray(picture).reshape(-1, 3).mean(axis=0)
        picture = ImageOps.pad(picture, (side, side), color=tuple(int(channel + 0.5) for channel in mean))
    elif fit == CROP:
        side = min(picture.size)
        picture = ImageOps.fit(picture, (side, side))
    return picture.resize((size, size), Image.Resampling.BICUBIC)
