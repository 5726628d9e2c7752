"""Where the hand-made part of a U-Net keeps its features.

A feature takes two channels, +f and -f. A group norm over such a pair keeps the mean of f, and
silu(f) - silu(-f) = f. So norm, activation and convolution together are linear in f, up to the size of f, which
the norm sets to 1.

The norms have 32 groups. At the base width a group is one pair. In wider layers it holds further pairs, and the
first of them is a pilot, a constant larger than f: there the norm is linear even in the size of f. Channels
after the used ones are free; the seeded part of the network has them for itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

COLOURS = range(4)
# One of each for every latent channel
NOISE = range(0, 4)  # what is predicted
PICTURE = range(4, 8)  # the input at the resolution of the level
SMOOTH = range(8, 12)  # the input as the deepest level sees it
MATCHED = range(12, 16)  # what the attentions found
# Single ones
ONE = 16
SQUARE = 17  # sum of the squares of SMOOTH, each times its SHARPNESS
USED = 18

PILOT = 4.0


@dataclass(frozen=True)
class Features:
    """The features of a layer with `width` channels in a network with `base` channels at the top level."""

    base: int
    width: int

    @property
    def pairs_in_group(self) -> int:
        """Pairs that share a group norm."""
        return self.width // self.base

    @property
    def used(self) -> int:
        """Number of channels that are not free."""
        return 2 * USED * self.pairs_in_group

    @property
    def norm_gain(self) -> float:
        """What undoes a group norm. Without a pilot nothing does: the size of the feature is then 1."""
        others = self.pairs_in_group - 1
        return PILOT * math.sqrt(others / self.pairs_in_group) if others else 1.0

    @property
    def one_gain(self) -> float:
        """What makes ONE be 1 again after a group norm; its group is ONE and pilots."""
        others = self.pairs_in_group - 1
        return math.sqrt((1 + others * PILOT**2) / self.pairs_in_group)

    @property
    def token_size(self) -> float:
        """Size of ONE that makes a layer norm over a token linear: with it alone, the norm divides by 1."""
        return math.sqrt(self.width / 2)

    def channel(self, feature: int) -> int:
        """The channel of +f; -f is the next one."""
        return 2 * feature * self.pairs_in_group

    def pilot(self, feature: int) -> int | None:
        """The channel of the pilot that shares a group with the feature."""
        return self.channel(feature) + 2 if self.pairs_in_group > 1 else None

    def write(self, weight: Tensor, feature: int, column: int, value: float) -> None:
        """Adds value * input[column] to the feature. `weight`: (outputs, inputs)."""
        channel = self.channel(feature)
        weight[channel, column] += value
        weight[channel + 1, column] -= value

    def read(self, weight: Tensor, row: int, feature: int, value: float) -> None:
        """Adds value * feature to output[row]."""
        channel = self.channel(feature)
        weight[row, channel] += value / 2
        weight[row, channel + 1] -= value / 2

    def write_copy(self, weight: Tensor, after: int, before: int, value: float = 1.0) -> None:
        """Adds value * one feature to another of a layer with the same features."""
        connect(weight, self.channel(after), self.channel(before), value)


def connect(weight: Tensor, after: int, before: int, value: float = 1.0) -> None:
    """Adds value * f to a feature, given the +f channels of both. `weight`: (outputs, inputs)."""
    for row, sign in ((after, 0.5), (after + 1, -0.5)):
        weight[row, before] += sign * value
        weight[row, before + 1] -= sign * value
