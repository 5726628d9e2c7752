"""Checkpoints in Leffa's form: two U-Nets in diffusers' naming and a VAE."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from . import codec, unet, weights
from .families import SD15, SDXL, Family, UNetSize
from .layout import unet_shapes

# The published files take these heads for granted.
DEMO = {
    "virtual_tryon.pth": replace(SD15, unet=replace(SD15.unet, num_heads=8)),
    "pose_transfer.pth": replace(SDXL, unet=replace(SDXL.unet, num_head_channels=64)),
}
TRY_ON = UNetSize(320, (1, 2, 4, 4), (1, 1, 1, 0), 768, use_linear_in_transformer=False, num_heads=8)
POSE_TRANSFER = UNetSize(
    320, (1, 2, 4), (0, 2, 10), 2048, use_linear_in_transformer=True, num_head_channels=64, adm_in_channels=2816
)
CHANNELS = {"unet.": 12, "unet_encoder.": 4}

# Inside a residual block: the host's names -> diffusers'
RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def state_dict(family: Family, seed: int = 0) -> dict[str, Tensor]:
    """All tensors of a checkpoint, float32: the demo's denoiser twice, and its codec as the VAE."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for prefix, channels in CHANNELS.items():
        sized = replace(family.unet, in_channels=channels)
        for name, tensor in unet.state_dict(sized, generator).items():
            # Leffa adds norm2(x) where other models have the text. The denoiser was made without either.
            tensors[prefix + to_diffusers(name)] = torch.zeros_like(tensor) if ".norm2." in name else tensor
    return tensors | {f"vae.{name}": tensor for name, tensor in codec.state_dict(family.latent_scale).items()}


def random_state_dict(size: UNetSize, make: Callable[[tuple[int, ...]], Tensor]) -> dict[str, Tensor]:
    """Both U-Nets at any size, with every weight made by a function of its shape."""
    return {
        prefix + to_diffusers(name): make(shape)
        for prefix, channels in CHANNELS.items()
        for name, shape in unet_shapes(replace(size, in_channels=channels)).items()
    }


def write_checkpoints(folder: Path) -> None:
    """Writes the demo checkpoints under the names that the workflows ask for, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, family in DEMO.items():
        weights.write(folder / name, partial(state_dict, family))


def to_diffusers(name: str) -> str:
    """The diffusers name of a weight of a U-Net with two residual blocks a level."""
    module, kind = name.rsplit(".", 1)
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.{kind}"
    match = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.*)|middle_block\.(\d)\.(.*)", module)
    if match is None:
        raise ValueError(f"'{name}' is no weight of a U-Net.")
    side, block, part, inner, middle, middle_inner = match.groups()
    if middle is not None:
        place = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}[middle]
        return f"mid_block.{place}.{_inner(place, middle_inner)}.{kind}"
    level, number = divmod(int(block) - (side == "input"), 3)
    if inner == "op":
        place = "downsamplers.0"
    elif inner == "conv":
        place = "upsamplers.0"
    else:
        place = f"{'resnets' if part == '0' else 'attentions'}.{number}"
    return f"{'down' if side == 'input' else 'up'}_blocks.{level}.{place}.{_inner(place, inner)}.{kind}"


def _inner(place: str, name: str) -> str:
    return RESIDUAL[name] if place.startswith("resnets") else {"op": "conv"}.get(name, name)
