"""Maps over a picture."""

from __future__ import annotations

import torch
from torch import Tensor

# A map that varies less than this holds nothing but rounding.
FLAT = 1e-5


def rescale(values: Tensor) -> Tensor:
    """Stretches a map linearly to [0, 1]; a flat one becomes 0 everywhere."""
    low, high = values.min(), values.max()
    return torch.zeros_like(values) if high - low < FLAT else (values - low) / (high - low)
