"""Inputs, checks and conversions that the nodes of Refine-by-Align have in common."""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..core.blocks import select_layers
from ..core.patches.align import Look
from ..core.patches.unet import family, require_image_unet, self_attention_layers
from ..core.pictures.grid import binary_mask
from .shared import (
    mask_batch,
    needing_opencv,
    number_input,
    require_latent_of,
    sampler_inputs,
    seed_input,
    step_inputs,
)

ONE_BY_ONE, TOGETHER = "one by one", "together"


def methods(node: str) -> ModuleType:
    """What the nodes run."""
    return needing_opencv("..core.patches.align.repair", node)


def repair(node: str, model: Any, vae: Any, positive: list[Any], context: float, size: int, feather: int) -> Any:
    """Both stages for a model and its VAE.

    Raises:
        RuntimeError: not an image U-Net.
        ValueError: when used, if the VAE is not the model's.
    """
    require_image_unet(model, node)
    run = methods(node)

    def encode(picture: Tensor) -> Tensor:
        return require_latent_of(model, vae.encode(picture), "What vae makes of a picture")

    return run.Repair(model, encode, vae.decode, positive, run.Work(context, size, feather), node)


def look(model: Any, timesteps: str, layers: str, seed: int, node: str) -> Look:
    """The alignment's settings from its widgets.

    Raises:
        ValueError: text that names no timesteps, or layers that the model does not have.
    """
    available = list(self_attention_layers(require_image_unet(model, node)))
    return Look(select_layers(layers, available, family(model)), _timesteps(timesteps), seed)


def _timesteps(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) <= 999 for part in parts):
        raise ValueError(f"timesteps is '{text}', but needs whole numbers from 0 to 999, such as 261 or 181, 261.")
    return tuple(map(int, parts))


def one_picture(image: Tensor, name: str) -> Tensor:
    """(1, H, W, 3) on the CPU.

    Raises:
        ValueError: a batch.
    """
    if len(image) != 1:
        raise ValueError(f"{name} holds {len(image)} pictures, but one is needed. Select one of the batch.")
    return image[..., :3].cpu().float()


def one_mask(mask: Tensor, image: Tensor) -> Tensor:
    """(H, W) of 0 and 1 at the size of the picture.

    Raises:
        ValueError: a batch.
    """
    masks = binary_mask(mask, (image.shape[1], image.shape[2]))
    if len(masks) != 1:
        raise ValueError(f"mask holds {len(masks)} masks for one picture. Give one mask; it may have several areas.")
    return masks[0]


def searched(reference_mask: Tensor | None) -> Tensor | None:
    """(h, w) of a reference mask, in its own size.

    Raises:
        ValueError: a batch, or nothing is white.
    """
    masks = mask_batch(reference_mask)
    if masks is None:
        return None
    if len(masks) != 1 or not masks.any():
        raise ValueError(
            f"reference_mask holds {len(masks)} masks, {int(masks.flatten(1).any(1).sum())} of them not black; one "
            "with something white is needed. Paint where to search, or leave the input unconnected."
        )
    return masks[0].float()


def log_warning(node: str, warning: str) -> None:
    """Tells in the log what the output `warning` tells in the graph."""
    if warning:
        logging.getLogger(__name__).warning("%s: %s", node, warning)


def model_inputs(prompt: str = "Prompt that describes what the masked area should show.") -> list[io.Input]:
    """`model`, `vae`, `positive`, with what the prompt is for."""
    return [
        io.Model.Input("model", tooltip="SD1.5, SD2 or SDXL model. The connected model itself is not changed."),
        io.Vae.Input("vae", tooltip="VAE of the model, which encodes picture and reference."),
        io.Conditioning.Input("positive", tooltip=prompt),
    ]


def negative_input() -> io.Input:
    """`negative`."""
    return io.Conditioning.Input("negative", tooltip="Prompt of what the masked area should not show.")


def areas_input() -> io.Input:
    """`areas`."""
    return io.Combo.Input(
        "areas",
        options=[ONE_BY_ONE, TOGETHER],
        default=ONE_BY_ONE,
        advanced=True,
        tooltip="Separate areas of the mask: each in a window of its own, one after the other, or all in one window.",
    )


def picture_inputs() -> list[io.Input]:
    """`image`, `mask`."""
    return [
        io.Image.Input("image", tooltip="Picture with the artifact, of any size."),
        io.Mask.Input("mask", tooltip="The artifact, white = repair. It may be rough, touch the border, or be empty."),
    ]


def reference_mask_input() -> io.Input:
    """`reference_mask`."""
    return io.Mask.Input(
        "reference_mask",
        optional=True,
        tooltip="Where in the reference to search, white = searched. Unconnected = everywhere.",
    )


def look_inputs() -> list[io.Input]:
    """`timesteps`, `layers`."""
    return [
        io.String.Input(
            "timesteps",
            default="261",
            advanced=True,
            tooltip="Noise levels, 0 to 999, at which attention is read, such as 261 or 181, 261; several are "
            "averaged and cost a look each.",
        ),
        io.String.Input(
            "layers",
            default="",
            advanced=True,
            tooltip="Self-attentions that are read, such as output.4, output.5.0 or a whole side: output. Empty: the "
            "first six blocks of the decoder.",
        ),
    ]


def align_inputs() -> list[io.Input]:
    """How the matching place is found."""
    return [
        *look_inputs(),
        number_input(
            "threshold", 0.0, 1.0, "Where the heat map is cut, as a share of its range. 0 finds it by itself."
        ),
        number_input("margin", 0.1, 1.0, "Added around the place that was found, as a share of its longer side."),
        number_input(
            "minimum_contrast",
            2.0,
            100.0,
            "How many times the attention of the rest the place must get to count as a match. 0 accepts anything.",
        ),
    ]


def work_inputs(with_feather: bool = True) -> list[io.Input]:
    """How the window around the artifact is chosen."""
    feather = io.Int.Input(
        "feather",
        default=8,
        min=0,
        max=128,
        advanced=True,
        tooltip="How far the soft edge reaches beyond the mask, in pixels. All pixels farther away are returned "
        "unchanged.",
    )
    return [
        number_input("context", 0.5, 4.0, "What the model sees around the artifact, as a share of its longer side."),
        working_size_input(
            "Longer side, in pixels, at which the model works on the area around the artifact and sees the reference. "
            "512 for SD1.5, 1024 for SDXL."
        ),
        *([feather] if with_feather else []),
    ]


def working_size_input(tooltip: str) -> io.Input:
    """`working_size`."""
    return io.Int.Input("working_size", default=512, min=128, max=2048, step=8, advanced=True, tooltip=tooltip)


def sampling_inputs() -> list[io.Input]:
    """KSampler's widgets, and the strength of the reference."""
    return [
        io.Float.Input(
            "strength",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How much the repaired area follows the reference. 0 paints without it.",
        ),
        seed_input("Seed of the noise, as in KSampler.", advanced=False, is_drawn_anew=True),
        *step_inputs(steps=30, cfg=5.0),
        io.Float.Input(
            "denoise",
            default=0.8,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How much of the area is painted anew. Lower keeps more of what is there.",
        ),
        *sampler_inputs(advanced=True),
    ]


def alignment_outputs() -> list[io.Output]:
    """What both aligning nodes tell about the match."""
    return [
        io.Image.Output(
            display_name="heat_map", tooltip="How much each place of the reference is looked at, dark to bright."
        ),
        io.BoundingBox.Output(display_name="box", tooltip="The place with its margin, in pixels of the reference."),
        io.Mask.Output(
            display_name="reference_mask", tooltip="The place that was found in the reference, white = the match."
        ),
        io.Boolean.Output(display_name="matched", tooltip="Whether a matching place was found for all of the mask."),
        io.String.Output(
            display_name="warning", tooltip="Empty if all went well, else what was left as it is, and why."
        ),
    ]
