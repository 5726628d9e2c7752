"""What a method needs in memory beside the model and the pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor


def shape_with(noise_shape: Sequence[int], latents: Iterable[Tensor]) -> list[int]:
    """Shape of a batch that takes as much memory as pictures (B, C, ...) and further latents (R, C, ...) together.

    It has more pictures, or of videos (B, C, F, H, W) more frames: one reference is far less than another video.
    """
    extra = sum(latent[:, 0].numel() for latent in latents)
    batch, channels, *sizes = noise_shape
    if len(sizes) == 3:
        frames, *picture = sizes
        return [batch, channels, frames + -(-extra // (batch * math.prod(picture))), *picture]
    return [batch + -(-extra // math.prod(sizes)), channels, *sizes]
