"""Inputs and outputs that the nodes of Refine-by-Align have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..core.pictures import gate
from ..core.refine_by_align.adapter import TrainedAdapter, size_in_training
from ..core.refine_by_align.back_ends import AUTO, CHOICES, back_end, placed
from ..core.refine_by_align.observe import USUAL, cell_and_unit
from ..core.refine_by_align.repair import Repair
from ..core.refine_by_align.window import SHORTEST, Case, Work, cases
from .refine_by_align_files import RefineAdapterIO
from .shared import encoder, number_input, sampler_inputs, seed_input, step_inputs

ONE_BY_ONE, TOGETHER = "one by one", "together"


def model_inputs(
    prompt: str = "Prompt that describes what the masked area should show.", of: str = "pictures"
) -> list[io.Input]:
    """`model`, `vae`, `positive`, with what the prompt is for, and what the model is of."""
    return [
        io.Model.Input(
            "model",
            tooltip=f"Model of {of}, SD1.5 to Flux 2, Qwen-Image, Z-Image. The connected one itself is not changed.",
        ),
        io.Vae.Input("vae", tooltip="VAE of the model, which encodes picture and reference."),
        io.Conditioning.Input("positive", tooltip=prompt),
    ]


def cases_of(
    image: Any, mask: Any, reference_image: Any, reference_mask: Any = None, more_references: Any = None
) -> list[Case]:
    """The pictures to repair, from what is connected."""
    return cases(
        gate.picture(image, "image"),
        gate.masks(mask, "mask"),
        gate.picture(reference_image, "reference_image"),
        gate.optional_masks(reference_mask, "reference_mask"),
        None if more_references is None else gate.picture(more_references, "more_references"),
    )


def stages(
    model: Any,
    vae: Any,
    positive: list[Any],
    work: Work,
    adapter: Any,
    clip_vision: Any,
    node: str,
    choice: str = AUTO,
    negative: list[Any] | None = None,
) -> Repair:
    """Both stages, with the back end that is connected or chosen; the first alone needs no negative prompt."""
    encode = encoder(model, vae, "What vae makes of a picture")
    chosen = back_end(model, encode, positive, node, adapter, clip_vision, choice)
    cell, unit = cell_and_unit(model)
    return Repair(
        chosen, encode, _decoder(vae), replace(work, cell=cell, unit=unit), placed(model, [positive, negative or []])
    )


def _decoder(vae: Any) -> Callable[[Tensor], Tensor]:
    """The pictures (B, H, W, 3) of latents; a VAE of videos gives each as a frame."""

    def decode(latent: Tensor) -> Tensor:
        pictures: Tensor = vae.decode(latent)
        return pictures.reshape(-1, *pictures.shape[-3:])

    return decode


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


def adapter_inputs() -> list[io.Input]:
    """`adapter`, `clip_vision`."""
    return [
        RefineAdapterIO.Input(
            "adapter",
            optional=True,
            tooltip="A trained adapter, from Refine Align Load. The model then sees the reference by its "
            "cross-attention, in place of the text of the prompts. Unconnected = by its self-attention, untrained.",
        ),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="The vision encoder that the adapter was trained with, such as DINOv2. Needed with an adapter.",
        ),
    ]


def back_end_input() -> io.Input:
    """`back_end`."""
    return io.Combo.Input(
        "back_end",
        options=CHOICES,
        default=AUTO,
        optional=True,
        advanced=True,
        tooltip="How the model sees the reference. in-context: beside the picture, as editing models are trained to "
        "(Flux Kontext, Flux 2, Qwen-Image-Edit). self-attention: any model, untrained. auto: in-context where model "
        "or prompt show that it is an editing model.",
    )


def more_references_input() -> io.Input:
    """`more_references`."""
    return io.Image.Input(
        "more_references",
        optional=True,
        tooltip="Further pictures of the same subject, of any size. Each that shows the part is in view as well. The "
        "outputs are about reference_image.",
    )


def look_inputs(with_auto: bool = False) -> list[io.Input]:
    """`timesteps`, `layers`; with_auto: by default as the adapter that is connected was calibrated."""
    usual = dict.fromkeys(USUAL, AUTO) if with_auto else USUAL
    auto = " auto: as the adapter was calibrated, else {}." if with_auto else ""
    return [
        io.String.Input(
            "timesteps",
            default=usual["timesteps"],
            advanced=True,
            tooltip="Noise levels, 0 to 999, at which attention is read, such as 261 or 181, 261; several are "
            "averaged, and each costs a pass." + auto.format("261"),
        ),
        io.String.Input(
            "layers",
            default=usual["layers"],
            advanced=True,
            tooltip="Self-attentions that are read, such as output.4, output.5.0 or a whole side: output. Empty: the "
            "first six blocks of a U-Net's decoder, the middle six of a transformer, a guess." + auto.format("those"),
        ),
    ]


def align_inputs() -> list[io.Input]:
    """How the matching place is found."""
    return [
        *look_inputs(with_auto=True),
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
            "Longer side, in pixels, at which the model works on the area around the artifact and sees the reference.",
            " With an adapter: the size that it was trained with.",
        ),
        *([feather] if with_feather else []),
    ]


def working_size_input(tooltip: str, more: str = "") -> io.Input:
    """`working_size`; `tooltip` says what is of this size, `more` what else 0 may mean."""
    return io.Int.Input(
        "working_size",
        default=0,
        min=0,
        max=2048,
        step=8,
        advanced=True,
        tooltip=f"{tooltip} 0 takes the size that the model was trained with: 512 for SD1.5, 1024 for SDXL and "
        f"transformers.{more}",
    )


def size_of(model: Any, working_size: int, adapter: TrainedAdapter | None = None) -> int:
    """What `working_size` asks for, in pixels.

    Raises:
        ValueError: it is too small to show anything.
    """
    if 0 < working_size < SHORTEST:
        raise ValueError(f"working_size is {working_size}, but must be 0 or at least {SHORTEST} pixels.")
    return working_size or size_in_training(model, adapter)


def sampling_inputs() -> list[io.Input]:
    """KSampler's widgets, and the strength of the reference."""
    return [
        io.Float.Input(
            "strength",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How much the repaired area follows the reference. 0 paints without it; 1 is as editing models are "
            "trained.",
        ),
        seed_input("Seed of the noise, as in KSampler.", advanced=False, is_drawn_anew=True),
        *step_inputs(steps=30, cfg=5.0),
        io.Float.Input(
            "denoise",
            default=0.8,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How much of the area is repainted. Lower keeps more of what is there.",
        ),
        *sampler_inputs(advanced=True),
    ]


def alignment_outputs() -> list[io.Output]:
    """The outputs about the match that both aligning nodes have."""
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
