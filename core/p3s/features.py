"""What the trained network of P3S gives to the injection."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..patches.blocks import Layer


@dataclass(frozen=True)
class Features:
    """What the copy gives to one transformer layer of the frozen U-Net, C the width of the layer.

    G is the number of halves, or of all their pictures where each has a prompt of its own.

    Attributes:
        grid: (h, w) of the tokens.
        hidden: (G, h * w, C), f of Eq. 6, for the self-attention.
        cross: (G, h * w, C), to be added to the output of the cross-attention.
    """

    grid: tuple[int, int]
    hidden: Tensor
    cross: Tensor


FeaturesOf = dict[Layer, Features]  # by the labels of the frozen U-Net


def weighted(features: FeaturesOf, weights: Tensor) -> FeaturesOf:
    """Features times a weight of their own for each of the G, (G,)."""
    factor = weights[:, None, None]
    return {layer: Features(each.grid, factor * each.hidden, factor * each.cross) for layer, each in features.items()}
