"""A denoiser written into the weights of a U-Net.

The noise that it predicts is the picture minus an estimate of the clean picture. That estimate has two
shares: the picture averaged down to the deepest level and interpolated back up, and what the last
self-attentions find, which is the average of all pixels whose smooth colour is like the own one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .families import UNetSize
from .features import COLOURS, MATCHED, NOISE, ONE, PICTURE, PILOT, SMOOTH, SQUARE, USED, Features, connect
from .layout import Part, unet_parts
from .matching import Matching

# Together a little more than 1, to keep the contrast of the picture up against the averaging.
SHARE_SMOOTH = 0.8
SHARE_MATCHED = 0.32
# The clouds of the picture have the size of the deepest cells and, to this share, of those of the level FINE.
SHARE_FINE, FINE = 0.9, 2
# The last norm fixes the size of the predicted noise. A little too much makes sure that none is left over.
NOISE_SIZE = 1.04
# How strongly the seeded part of the network acts on the features of the denoiser, and on its own
SEEDED, FREE = 0.001, 0.3

AREA = torch.tensor([0.0, 0.5, 0.5])  # mean of 2x2 pixels: with stride 2 and padding 1, the last two of three
LINEAR = torch.tensor([0.25, 0.5, 0.25])  # linear interpolation of what was repeated


class Denoiser:
    """Writes the denoiser over the seeded weights of one U-Net, in place."""

    def __init__(self, weights: dict[str, Tensor], size: UNetSize) -> None:
        self._weights = weights
        self._size = size
        self._parts = unet_parts(size)

    def write(self) -> None:
        """Makes all changes."""
        for part in self._parts:
            if part.kind == "conv":
                self._write_input(part)
            elif part.kind == "down":
                self._write_resampling(part, f"{part.name}op.weight", AREA)
            elif part.kind == "up":
                self._write_resampling(part, f"{part.name}conv.weight", LINEAR)
            elif part.kind == "res":
                self._weaken(part, "out_layers.3.weight")
            else:
                self._weaken(part, "proj_out.weight")
        self._write_skips()
        self._write_attentions()
        self._write_output()

    def _features(self, width: int) -> Features:
        return Features(self._size.model_channels, width)

    def _cleared(self, part: Part, name: str) -> Tensor:
        """A weight without the rows that make the denoiser's features."""
        weight = self._weights[name]
        weight[: self._features(part.channels_out).used] = 0
        return weight

    def _weaken(self, part: Part, name: str) -> None:
        weight, used = self._weights[f"{part.name}{name}"], self._features(part.channels_out).used
        weight[:used] *= SEEDED
        weight[used:] *= FREE

    def _write_input(self, part: Part) -> None:
        features = self._features(part.channels_out)
        weight, bias = self._cleared(part, f"{part.name}weight"), self._weights[f"{part.name}bias"]
        for colour in COLOURS:
            features.write(weight[..., 1, 1], PICTURE[colour], colour, 1.0)
        features.write(bias[:, None], ONE, 0, 1.0)

    def _write_resampling(self, part: Part, name: str, kernel: Tensor) -> None:
        weight = self._cleared(part, name)
        for channel in range(self._features(part.channels_out).used):
            weight[channel, channel] = kernel[:, None] * kernel

    def _write_skips(self) -> None:
        res = [part for part in self._parts if part.kind == "res"]
        decoder = [part for part in res if part.name.startswith("output_blocks.")]
        for part in res:
            if part in decoder:
                self._write_merge(part, is_first=part is decoder[0], is_last=part is decoder[-1])
            elif part.channels_in != part.channels_out:
                weight = self._cleared(part, f"{part.name}skip_connection.weight")[..., 0, 0]
                self._copy_input(part, weight, part.channels_in, 0)

    def _copy_input(self, part: Part, weight: Tensor, width: int, offset: int) -> None:
        """What every level gets from the encoder. `width`, `offset`: its place in the inputs of `weight`."""
        before, after = self._features(width), self._features(part.channels_out)
        for feature in (*PICTURE, ONE):
            connect(weight, after.channel(feature), offset + before.channel(feature))
        for feature in range(USED):
            pilot = after.pilot(feature)
            if pilot is not None:
                connect(weight, pilot, offset + before.channel(ONE), PILOT)

    def _write_merge(self, part: Part, is_first: bool, is_last: bool) -> None:
        """Joins the stream from the deeper level, which comes first among the inputs, with the encoder's."""
        weight = self._cleared(part, f"{part.name}skip_connection.weight")[..., 0, 0]
        stream = self._parts[self._parts.index(part) - 1].channels_out
        self._copy_input(part, weight, part.channels_in - stream, stream)
        before, after = self._features(stream), self._features(part.channels_out)
        for colour in COLOURS:
            smooth = before.channel((PICTURE if is_first else SMOOTH)[colour])
            picture = stream + self._features(part.channels_in - stream).channel(PICTURE[colour])
            matched, noise = before.channel(MATCHED[colour]), after.channel(NOISE[colour])
            fine = SHARE_FINE if part.level == FINE and self._comes_from_below(part) else 0.0
            connect(weight, after.channel(SMOOTH[colour]), smooth, 1 - fine)
            connect(weight, after.channel(SMOOTH[colour]), picture, fine)
            connect(weight, after.channel(MATCHED[colour]), matched)
            if is_last:
                connect(weight, noise, picture)
                connect(weight, noise, smooth, -SHARE_SMOOTH)
                connect(weight, noise, matched, -SHARE_MATCHED)
        connect(weight, after.channel(SQUARE), before.channel(SQUARE))

    def _comes_from_below(self, part: Part) -> bool:
        return self._parts[self._parts.index(part) - 1].kind == "up"

    def _write_attentions(self) -> None:
        """The last three attentions match pixels. One layer deep, the first prepares that for the others."""
        attentions = [part for part in self._parts if part.kind == "attention"][-3:]
        matching = Matching(self._weights, self._size)
        matchers = attentions if attentions[0].depth > 1 else attentions[1:]
        for part in attentions:
            # Nothing merges the stream again after an attention in the last block: it acts on the prediction.
            is_last = part is self._parts[-1]
            share = 1 / len(matchers)
            target, value = (NOISE, -share * SHARE_MATCHED) if is_last else (MATCHED, share)
            matching.write(
                part, target, value, squares=part is attentions[0] or part.depth > 1, matches=part in matchers
            )

    def _write_output(self) -> None:
        weight, features = self._weights["out.2.weight"], self._features(self._size.model_channels)
        weight[:] = 0
        for colour in COLOURS:
            # silu(f) - silu(-f) = f
            features.read(weight[..., 1, 1], colour, NOISE[colour], 2 * NOISE_SIZE)
