"""Leffa: the authors' noise levels, and pictures as their application prepares them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..core.leffa.fit import fit
from ..core.leffa.schedule import official_sigmas
from ..core.pictures import gate
from .connected import checked

PICTURE, GARMENT = "whole picture", "cut out garment"


class LeffaSigmas(io.ComfyNode):
    """Noise levels of Leffa's published sampling loop."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="LeffaSigmas",
            display_name="Leffa Sigmas",
            category="model/conditioning/reference",
            description=(
                "The noise levels of Leffa's published sampling loop, for SamplerCustom with the sampler ddpm and cfg "
                "2.5. KSampler's ddim_uniform gives the same for 4, 20 and 50 steps, but not for 30."
            ),
            search_aliases=["leffa", "sigmas", "timesteps", "scheduler", "published settings"],
            inputs=[
                io.Model.Input("model", tooltip="From Leffa Loader, Leffa Try-On or Leffa Pose Transfer."),
                io.Int.Input(
                    "steps",
                    default=30,
                    min=1,
                    max=999,
                    tooltip="30 is the default of the authors' application, 50 of their inference class.",
                ),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="For SamplerCustom or SamplerCustomAdvanced.")],
        )

    @classmethod
    @checked
    def execute(cls, model: Any, steps: int) -> io.NodeOutput:
        """Returns the noise levels."""
        return io.NodeOutput(official_sigmas(model, steps))


class LeffaFit(io.ComfyNode):
    """Brings a picture to the size that Leffa was trained with."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="LeffaFit",
            display_name="Leffa Fit",
            category="image/transform",
            description=(
                "Fits a picture on white at 768 x 1024, as the authors' application does with persons and garments "
                "before anything else; or cuts a garment out of a transparent picture and fits that."
            ),
            search_aliases=["leffa", "resize and center", "garment preprocessing", "fit", "letterbox", "768 x 1024"],
            inputs=[
                io.Image.Input("image", tooltip="A person or a garment, of any size."),
                io.Combo.Input(
                    "part",
                    options=[PICTURE, GARMENT],
                    default=PICTURE,
                    tooltip="whole picture for persons and for garments as they are. cut out garment is the "
                    "application's option for transparent garments: a square around it, at full width.",
                ),
                io.Int.Input("width", default=768, min=16, max=16384, tooltip="Width of the result in pixels."),
                io.Int.Input("height", default=1024, min=16, max=16384, tooltip="Height of the result in pixels."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="What is transparent, white = transparent, as Load Image gives it. Only for 'cut out "
                    "garment'.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The picture on white, of that size.")],
        )

    @classmethod
    @checked
    def execute(cls, image: Tensor, part: str, width: int, height: int, mask: Tensor | None = None) -> io.NodeOutput:
        """Returns the fitted pictures."""
        image, mask = gate.picture(image, "image"), gate.optional_masks(mask, "mask")
        if part == GARMENT and mask is None:
            raise ValueError(f"part is '{part}', but no mask says where the garment is. Connect that of Load Image.")
        if part == GARMENT and width > height:
            raise ValueError(f"A cut-out garment fills the width of a picture that is higher than {width} x {height}.")
        if part == PICTURE:
            mask = None
        if mask is not None and mask.shape[1:] != image.shape[1:3] and not mask.any():
            raise ValueError(
                "image has no transparency: its mask is empty and of another size, as Load Image then gives it. "
                f"Connect a garment that is cut out, or set part to '{PICTURE}'."
            )
        if mask is not None and (len(mask) not in (1, len(image)) or mask.shape[1:] != image.shape[1:3]):
            raise ValueError(
                f"mask is {len(mask)} x {mask.shape[1]} x {mask.shape[2]} (number, height, width), but image "
                f"{len(image)} x {image.shape[1]} x {image.shape[2]}. Connect the mask of the same Load Image."
            )
        return io.NodeOutput(fit(image, (height, width), mask))
