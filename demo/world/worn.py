"""What try-on needs to know of a person: pictures and maps, as the nodes and the trainer read them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import draw, truth
from .record import Record


def maps(shown: Record) -> dict[str, NDArray[np.uint8]]:
    """Person, DensePose as I, U and V, and parsing, (H, W, 3) each."""
    labels = truth.parsing(shown)
    return {
        "person": draw.picture(shown),
        "densepose": truth.densepose(shown),
        "parsing": np.repeat(labels[..., None], 3, -1),
    }
