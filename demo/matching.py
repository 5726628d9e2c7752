"""Self-attention that compares pixels by their smooth colours and passes on the colours of the picture.

The attention's score is a Gaussian's exponent, -|s - s'|^2 / 2. With s taken from the query and s' from the
key that is s.s' - |s'|^2 / 2; what depends on the query alone cancels in the softmax. The square |s'|^2 comes
from a feed-forward layer before: s * gelu(s) + (-s) * gelu(-s) = s^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from .families import UNetSize
from .features import COLOURS, MATCHED, ONE, PICTURE, SMOOTH, SQUARE, Features
from .layout import Part

# How much a colour counts in the comparison: luminance most, the step in luminance not at all
SHARPNESS = (4.0, 1.0, 1.0, 0.0)
# The square is kept small beside the constant, for the sake of the layer norm.
SQUARE_SCALE = 0.1
# The size of the square before a group norm has set it to 1, if the colours are normally distributed
SQUARE_SIZE = math.sqrt(sum(SHARPNESS) ** 2 + 2 * sum(s * s for s in SHARPNESS))
# How strongly the prompt tints what is passed on
TINT = 0.004


class Matching:
    """Writes the attentions of one U-Net, in place."""

    def __init__(self, weights: dict[str, Tensor], size: UNetSize) -> None:
        self._weights = weights
        self._size = size

    def write(self, part: Part, target: Sequence[int], share: float, squares: bool, matches: bool) -> None:
        """Writes one spatial transformer.

        Args:
            target: features of the stream that get what was found, times `share`.
            squares: whether its first layer makes the squares.
            matches: whether its last layer matches; if squares and matches, it needs two layers.
        """
        features = Features(self._size.model_channels, part.channels_out)
        self._write_projections(part, features, target, share)
        if part.depth == 1:  # the square goes by the stream from one transformer to the next
            name = "proj_out" if squares else "proj_in"
            features.write_copy(_matrix(self._weights[f"{part.name}{name}.weight"]), SQUARE, SQUARE)
        for layer in range(part.depth):
            self._clear(f"{part.name}transformer_blocks.{layer}.", features)
        if squares:
            self._write_square(f"{part.name}transformer_blocks.0.", features)
        if matches:
            square = 1 / SQUARE_SCALE if squares else SQUARE_SIZE
            self._write_match(f"{part.name}transformer_blocks.{part.depth - 1}.", features, square)

    def _write_projections(self, part: Part, features: Features, target: Sequence[int], share: float) -> None:
        proj_in, proj_out = (_matrix(self._weights[f"{part.name}{name}.weight"]) for name in ("proj_in", "proj_out"))
        proj_in[:] = 0
        for feature in (*PICTURE, *SMOOTH):
            features.write_copy(proj_in, feature, feature, features.norm_gain)
        features.write_copy(proj_in, ONE, ONE, features.token_size * features.one_gain)
        for colour in COLOURS:
            features.write_copy(proj_out, target[colour], MATCHED[colour], share)

    def _clear(self, block: str, features: Features) -> None:
        """Takes the seeded part off the denoiser's features, except for the prompt."""
        for name, strength in (("attn1.to_out.0", 0.0), ("attn2.to_out.0", TINT), ("ff.net.2", 0.0)):
            self._weights[f"{block}{name}.weight"][: features.used] *= strength

    def _write_square(self, block: str, features: Features) -> None:
        proj, out = self._weights[f"{block}ff.net.0.proj.weight"], self._weights[f"{block}ff.net.2.weight"]
        gates = len(proj) // 2
        for colour in COLOURS:
            for unit, sign in ((2 * colour, 1), (2 * colour + 1, -1)):
                for row in (unit, gates + unit):
                    proj[row] = 0
                    features.read(proj, row, SMOOTH[colour], sign * math.sqrt(SHARPNESS[colour]))
                out[:, unit] = 0
                features.write(out, SQUARE, unit, SQUARE_SCALE)

    def _write_match(self, block: str, features: Features, square: float) -> None:
        q, k, v, out = (self._weights[f"{block}attn1.{name}.weight"] for name in ("to_q", "to_k", "to_v", "to_out.0"))
        for weight in (q, k, v, out):
            weight[:] = 0
        heads = self._size.heads(features.width)
        dim = features.width // heads
        for first in range(0, features.width, dim):
            for colour in COLOURS:
                # attention divides the scores by this root
                features.read(q, first + colour, SMOOTH[colour], SHARPNESS[colour] * math.sqrt(dim))
                features.read(k, first + colour, SMOOTH[colour], 1.0)
                features.read(v, first + colour, PICTURE[colour], 1.0)
                features.write(out, MATCHED[colour], first + colour, 1 / heads)
            features.read(q, first + len(COLOURS), ONE, -0.5 * math.sqrt(dim) / features.token_size)
            features.read(k, first + len(COLOURS), SQUARE, square)


def _matrix(weight: Tensor) -> Tensor:
    """A linear layer's weight, or a 1x1 convolution's seen as one."""
    return weight[..., 0, 0] if weight.ndim == 4 else weight
