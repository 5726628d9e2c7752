"""The structure of a Leffa checkpoint, read from names and shapes alone.

The file holds three state dicts in diffusers' naming: `unet.` (generative, 12 input channels), `unet_encoder.`
(reference, 4 input channels) and, as published, `vae.`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import comfy.utils

from ..models.checkpoint import Shapes

GENERATIVE, REFERENCE, VAE = "unet.", "unet_encoder.", "vae."
CHANNELS = {GENERATIVE: 12, REFERENCE: 4}
# Neither U-Net has text or added conditions; the checkpoints carry the weights for them all the same.
UNUSED = re.compile(r"\.attn2\.|^add_embedding\.")


def require_leffa_file(shapes: Shapes, name: str) -> None:
    """Checks that a checkpoint has Leffa's two U-Nets.

    Raises:
        RuntimeError: one is missing; names the input channels of what is there instead.
    """
    found = {prefix: shapes.get(f"{prefix}conv_in.weight", ())[1:2] for prefix in CHANNELS}
    if found == {prefix: (channels,) for prefix, channels in CHANNELS.items()}:
        return
    # The first convolution of a U-Net, as the different file formats call it
    first = re.compile(r"(^|\.)(unet\w*\.conv_in|diffusion_model\.input_blocks\.0\.0)\.weight$|^conv_in\.weight$")
    channels = [str(shape[1]) for key, shape in shapes.items() if first.search(key) and len(shape) == 4]
    has = f"its U-Net takes {' and '.join(channels)} input channels" if channels else "it has no U-Net"
    raise RuntimeError(
        f"{name} is no Leffa checkpoint: {has}, but Leffa needs a generative U-Net with {CHANNELS[GENERATIVE]} and a "
        f"reference U-Net with {CHANNELS[REFERENCE]}. Use virtual_tryon, virtual_tryon_dc or pose_transfer."
    )


def unet_config(shapes: Shapes, name: str) -> dict[str, Any]:
    """ComfyUI's description of a U-Net in diffusers' naming, without the number of heads, which shapes do not show.

    Args:
        shapes: names without prefix.
        name: of file and U-Net, for the message.

    Raises:
        RuntimeError: a weight that shows the structure is missing, or of a shape that no such weight has.
    """
    try:
        return _config(shapes)
    except KeyError as error:
        raise RuntimeError(f"{name} does not fit: {error} is missing.") from error
    except (ValueError, ZeroDivisionError) as error:
        raise RuntimeError(f"{name} does not fit: the shapes of its convolutions contradict each other.") from error


def _config(shapes: Shapes) -> dict[str, Any]:
    width, channels, _, _ = shapes["conv_in.weight"]
    levels = range(_count(shapes, r"down_blocks\.(\d+)\.resnets"))
    blocks = [_count(shapes, rf"down_blocks\.{level}\.resnets\.(\d+)\.") for level in levels]
    widths = [_filters(shapes, f"down_blocks.{level}.resnets.0.conv1.weight") for level in levels]
    up = [_depth(shapes, f"up_blocks.{level}", block) for level in levels for block in range(blocks[-1 - level] + 1)]
    mid_projection = shapes["mid_block.attentions.0.proj_in.weight"]
    return {
        "image_size": 32,
        "in_channels": channels,
        "out_channels": _filters(shapes, "conv_out.weight") if "conv_out.weight" in shapes else 4,
        "model_channels": width,
        "num_res_blocks": blocks,
        "channel_mult": [each // width for each in widths],
        "transformer_depth": [
            _depth(shapes, f"down_blocks.{level}", block) for level in levels for block in range(blocks[level])
        ],
        "transformer_depth_middle": _depth(shapes, "mid_block", 0),
        "transformer_depth_output": up[::-1],
        "use_linear_in_transformer": len(mid_projection) == 2,
        "use_spatial_transformer": True,
        "use_temporal_attention": False,
        "legacy": False,
        "context_dim": 1,  # only sizes the cross-attention, which is not kept
        "num_classes": None,
        "adm_in_channels": None,
    }


def to_host(config: dict[str, Any]) -> dict[str, str]:
    """Names of a U-Net's weights: diffusers' -> ComfyUI's, by ComfyUI's own table, without what Leffa leaves out."""
    return {theirs: ours for theirs, ours in comfy.utils.unet_to_diffusers(config).items() if not UNUSED.search(theirs)}


def _filters(shapes: Shapes, name: str) -> int:
    """How many channels a convolution gives.

    Raises:
        KeyError, ValueError: it is not there, or no convolution.
    """
    filters, _, _, _ = shapes[name]
    return filters


def _count(names: Iterable[str], pattern: str) -> int:
    """How many numbers a pattern finds at the beginning of names, counted from 0."""
    found = {int(match[1]) for match in map(re.compile(pattern).match, names) if match}
    return max(found, default=-1) + 1


def _depth(names: Iterable[str], block: str, attention: int) -> int:
    return _count(names, rf"{re.escape(block)}\.attentions\.{attention}\.transformer_blocks\.(\d+)\.")
