"""A picture codec in the layout of TAESD, with weights made by hand instead of training.

Latents are colours averaged over 8x8 pixels; decoding interpolates between them. The network consists of 3x3
convolutions and blocks `relu(x + branch(x))`. A branch of zeros leaves features that are not negative as they
are, so a block is used where something is to be computed and passes the features through everywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WIDTH = 64
RGB = range(3)
# One more feature that is 1 everywhere: after a convolution with zero padding it tells where the border is.
ONES = 3
# Encoder: luminance of the left and of the right half of a cell
LEFT, RIGHT = 3, 4
# Decoder, inside a block: steps between pixels, four for each colour, and the result for the rows
STEPS = 4
IN_ROWS = 16
# More than any step
SUPPRESS = 16.0

# The decoder begins with 3 * tanh(x / 3), which is as good as linear for latents of this size.
LATENT_SIZE = 0.05

# Latent channels: luminance, red - luminance, blue - luminance, and the horizontal step of luminance, each
# divided by about the standard deviation that it has in photographs.
LUMINANCE = torch.tensor([0.299, 0.587, 0.114])
COLOURS = torch.stack([LUMINANCE, torch.tensor([1.0, 0, 0]) - LUMINANCE, torch.tensor([0, 0, 1.0]) - LUMINANCE])
MEAN = 0.45
DEVIATION = torch.tensor([0.25, 0.12, 0.12, 0.12])


def state_dict(latent_scale: float) -> dict[str, Tensor]:
    """Weights of encoder and decoder.

    Args:
        latent_scale: the factor by which the host multiplies the latents of this family before sampling.
    """
    weights = zeros()
    _fill_encoder(weights)
    _fill_decoder(weights)
    weights["vae_scale"] = torch.tensor(LATENT_SIZE * latent_scale)
    weights["vae_shift"] = torch.tensor(0.0)
    return weights


def _mix(matrix: Tensor, rows: list[float], columns: list[float]) -> Tensor:
    """(O, I) mix of features and a separable 3x3 kernel -> (O, I, 3, 3)."""
    kernel = torch.tensor(rows)[:, None] * torch.tensor(columns)[None, :]
    return matrix[:, :, None, None] * kernel


# Layer number -> (inputs, outputs, has bias), or None for a block
CONV = (WIDTH, WIDTH, False)
ENCODER: dict[int, tuple[int, int, bool] | None] = {
    0: (3, WIDTH, True), 1: None,
    2: CONV, 3: None, 4: None, 5: None,
    6: CONV, 7: None, 8: None, 9: None,
    10: CONV, 11: None, 12: None, 13: None,
    14: (WIDTH, 4, True),
}  # fmt: skip
DECODER: dict[int, tuple[int, int, bool] | None] = {
    1: (4, WIDTH, True), 3: None, 4: None, 5: None,
    7: CONV, 8: None, 9: None, 10: None,
    12: CONV, 13: None, 14: None, 15: None,
    17: CONV, 18: None, 19: (WIDTH, 3, True),
}  # fmt: skip


def zeros() -> dict[str, Tensor]:
    """Encoder and decoder of TAESD's layout whose weights are all zero."""
    return {**_zeros("taesd_encoder.", ENCODER), **_zeros("taesd_decoder.", DECODER)}


def _zeros(prefix: str, layers: dict[int, tuple[int, int, bool] | None]) -> dict[str, Tensor]:
    weights = {}
    for number, layer in layers.items():
        if layer is None:
            for conv in (0, 2, 4):
                weights[f"{prefix}{number}.conv.{conv}.weight"] = torch.zeros(WIDTH, WIDTH, 3, 3)
                weights[f"{prefix}{number}.conv.{conv}.bias"] = torch.zeros(WIDTH)
            continue
        inputs, outputs, has_bias = layer
        weights[f"{prefix}{number}.weight"] = torch.zeros(outputs, inputs, 3, 3)
        if has_bias:
            weights[f"{prefix}{number}.bias"] = torch.zeros(outputs)
    return weights


def _fill_encoder(weights: dict[str, Tensor]) -> None:
    """Averages 2x2 pixels three times: with stride 2 and padding 1 those are the last two of each three."""
    pair, identity = [0.0, 0.5, 0.5], torch.eye(WIDTH)
    weights["taesd_encoder.0.weight"][:3, :, 1, 1] = torch.eye(3)
    weights["taesd_encoder.2.weight"] = _mix(identity, pair, pair)
    weights["taesd_encoder.6.weight"] = _mix(identity, pair, pair)
    last = _mix(identity, pair, pair)
    for feature, columns in ((LEFT, [0.0, 1.0, 0.0]), (RIGHT, [0.0, 0.0, 1.0])):
        last[feature, :3] = _mix(LUMINANCE[None], pair, columns)[0]
    weights["taesd_encoder.10.weight"] = last

    scale = LATENT_SIZE / DEVIATION
    weights["taesd_encoder.14.weight"][:3, :3, 1, 1] = COLOURS * scale[:3, None]
    weights["taesd_encoder.14.bias"][0] = -MEAN * scale[0]
    weights["taesd_encoder.14.weight"][3, LEFT, 1, 1] = -scale[3]
    weights["taesd_encoder.14.weight"][3, RIGHT, 1, 1] = scale[3]


def _fill_decoder(weights: dict[str, Tensor]) -> None:
    """Back to RGB, then up three times by repeating pixels, which a block turns into linear interpolation."""
    to_rgb = torch.linalg.inv(COLOURS)
    weights["taesd_decoder.1.weight"][:3, :3, 1, 1] = to_rgb * (DEVIATION[:3] / LATENT_SIZE)
    weights["taesd_decoder.1.bias"][:3] = to_rgb[:, 0] * MEAN
    weights["taesd_decoder.1.bias"][ONES] = 1.0
    for upsampled, block in ((7, 8), (12, 13), (17, 18)):
        weights[f"taesd_decoder.{upsampled}.weight"][:, :, 1, 1] = torch.eye(WIDTH)
        _fill_interpolation(weights, f"taesd_decoder.{block}.conv.")
    weights["taesd_decoder.19.weight"][:, :3, 1, 1] = torch.eye(3)


def _fill_interpolation(weights: dict[str, Tensor], block: str) -> None:
    """x -> x + a quarter of the steps to its neighbours, first along the rows, then along the columns."""
    first, second, third = (weights[f"{block}{conv}.weight"] for conv in (0, 2, 4))
    for feature in (*RGB, ONES):
        first[feature, feature, 1, 1] = second[feature, feature, 1, 1] = 1.0
    for colour in RGB:
        steps = _fill_steps(first, weights[f"{block}0.bias"], colour, {colour: 1.0}, ((1, 0), (1, 2)))
        in_rows = {colour: 1.0, **steps}
        for feature, weight in in_rows.items():
            second[IN_ROWS + colour, feature, 1, 1] = weight
        steps = _fill_steps(second, weights[f"{block}2.bias"], colour, in_rows, ((0, 1), (2, 1)))
        for feature, weight in {colour: -1.0, IN_ROWS + colour: 1.0, **steps}.items():
            third[colour, feature, 1, 1] = weight


def _fill_steps(
    weights: Tensor,
    bias: Tensor,
    colour: int,
    value: dict[int, float],
    neighbours: Sequence[tuple[int, int]],
) -> dict[int, float]:
    """Features for the steps from a value to its neighbours; up and down apart, because each passes a relu.

    Beyond the border everything reads 0. The step down to that is suppressed by the feature of ones, which
    is 0 there as well; so the border keeps its colour.

    Returns:
        what to sum up for a quarter of all steps.
    """
    quarter: dict[int, float] = {}
    for number, (row, column) in enumerate(neighbours):
        up = STEPS + 4 * colour + 2 * number
        down = up + 1
        for feature, weight in value.items():
            weights[up, feature, row, column], weights[up, feature, 1, 1] = weight, -weight
            weights[down, feature, row, column], weights[down, feature, 1, 1] = -weight, weight
        weights[down, ONES, row, column], bias[down] = SUPPRESS, -SUPPRESS
        quarter |= {up: 0.25, down: -0.25}
    return quarter
