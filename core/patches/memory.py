"""What a method needs in memory beside the model and the pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor


def shape_with(noise_shape: Sequence[int], latents: Iterable[Tensor]) -> list[int]:
    """Shape of a batch that takes as much memory as pictures (B, C, ...) and further latents (R, C, ...) together."""
    extra = sum(latent[:, 0].numel() for latent in latents)
    return [noise_shape[0] + -(-extra // math.prod(noise_shape[2:])), *noise_shape[1:]]
