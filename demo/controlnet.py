"""Weights of a stand-in ControlNet for the demo's SD1.5: the encoder of its U-Net behind a hint, drawn from a seed."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from .families import UNetSize
from .layout import unet_parts

FILE_NAME = "control_v11p_sd15_canny_fp16.safetensors"
HINT = (3, 16, 16, 32, 32, 96, 96, 256)  # channels of the convolutions that the hint passes before the first block
GAIN = 0.05  # of what is added to the U-Net: enough that the hint moves the picture, and it stays one
COPIED = ("time_embed.", "input_blocks.", "middle_block.")


def state_dict(unet: dict[str, Tensor], size: UNetSize, seed: int = 0) -> dict[str, Tensor]:
    """All tensors, with the names that a ControlNet for SD1.5 has.

    Args:
        unet: tensors of the U-Net that it belongs to.
        size: of that U-Net.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: tensor for name, tensor in unet.items() if name.startswith(COPIED)}

    def convolution(name: str, inputs: int, outputs: int, side: int, gain: float) -> None:
        shape = (outputs, inputs, side, side)
        tensors[f"{name}.weight"] = gain * torch.randn(shape, generator=generator) / math.sqrt(inputs * side * side)
        tensors[f"{name}.bias"] = torch.zeros(outputs)

    for number, (inputs, outputs) in enumerate(pairwise((*HINT, size.model_channels))):
        convolution(f"input_hint_block.{2 * number}", inputs, outputs, 3, math.sqrt(2))
    parts = [part for part in unet_parts(size) if part.name.startswith("input_blocks.") and part.kind != "attention"]
    for number, part in enumerate(parts):
        convolution(f"zero_convs.{number}.0", part.channels_out, part.channels_out, 1, GAIN)
    convolution("middle_block_out.0", parts[-1].channels_out, parts[-1].channels_out, 1, GAIN)
    return tensors
