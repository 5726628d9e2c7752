"""Leffa: Learning Flow Fields in Attention for Controllable Person Image Generation (arXiv 2412.08486)."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..core.leffa.body_map import NEEDED_BY, require_shape
from ..core.leffa.inputs import leffa, pose_transfer, size_of, try_on
from ..core.leffa.loader import load
from ..core.leffa.settings import LeffaSettings
from ..core.leffa.wrappers import attach_reference_unet
from ..core.pictures import gate
from .connected import checked
from .files import file_input, model_path

AUTO = "auto"
EVERY_STEP, ONCE, EVERY_N = "every step", "once", "every n steps"
FOLDERS = ("diffusion_models", "checkpoints")


class LeffaLoader(io.ComfyNode):
    """Loads both U-Nets of a Leffa checkpoint, and its VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="LeffaLoader",
            display_name="Leffa Loader",
            category="model/loaders",
            description=(
                "Loads virtual_tryon.pth, virtual_tryon_dc.pth or pose_transfer.pth of Leffa (or safetensors made from "
                "them) from models/diffusion_models or models/checkpoints."
            ),
            search_aliases=["leffa", "try on", "VTON", "pose transfer", "virtual try-on model"],
            inputs=[
                file_input(
                    "model_name",
                    "A Leffa checkpoint; its content tells which one it is. It is read safely: no code in it is run.",
                    FOLDERS,
                ),
                io.Int.Input(
                    "cache_megabytes",
                    display_name="cache_mib",
                    default=1024,
                    min=0,
                    max=65536,
                    advanced=True,
                    tooltip="Memory, in MiB, for what the reference U-Net makes of an empty reference. It depends on "
                    "size and timestep only and is used again for the next picture; 768 x 1024 needs 66 MiB a step.",
                ),
                io.Combo.Input(
                    "body_map",
                    options=[AUTO, *NEEDED_BY],
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="Kind of DensePose picture that the checkpoint was trained with: Parula for virtual_tryon, "
                    "part numbers for virtual_tryon_dc, UVI for pose_transfer. auto goes by what tools/train.py wrote "
                    "into the file, else by the weights and, between the two for try-on, by 'dc' in the file's name.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The generative U-Net, which brings the reference U-Net along. For Leffa Try-On or "
                    "Leffa Pose Transfer."
                ),
                io.Vae.Output(tooltip="The VAE of the checkpoint. Empty if the file has none: then use Load VAE."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, model_name: str, cache_megabytes: int, body_map: str = AUTO) -> io.NodeOutput:
        """Returns the generative model and the VAE."""
        parts = load(model_path(model_name, FOLDERS), None if body_map == AUTO else body_map)
        return io.NodeOutput(attach_reference_unet(parts.generative, parts.reference, cache_megabytes << 20), parts.vae)


class LeffaTryOn(io.ComfyNode):
    """Dresses a person in a garment."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="LeffaTryOn",
            display_name="Leffa Try-On",
            category="model/conditioning/reference",
            description=(
                "Prepares a person, a garment and a mask for Leffa. Connect all four outputs to a KSampler (cfg 2.5, "
                "50 steps, ddpm, ddim_uniform), then decode and paste with Leffa Repaint."
            ),
            search_aliases=["leffa", "try on", "VTON", "virtual try-on", "garment", "clothes swap", "dress", "outfit"],
            inputs=[
                *_model_inputs(),
                io.Image.Input("image", tooltip="The person. Any size; the models are trained at 768 x 1024."),
                io.Image.Input(
                    "garment_image", tooltip="The garment, as a picture of its own. One, or one per person."
                ),
                io.Image.Input(
                    "densepose",
                    tooltip="DensePose picture of the person, same size as image: in the colours of Parula for "
                    "virtual_tryon, part numbers for virtual_tryon_dc. Leffa Body Map makes it of any other.",
                ),
                io.Mask.Input(
                    "mask", tooltip="What is repainted, white = garment. From Leffa Mask, or painted by hand."
                ),
                *_sampling_inputs(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        vae: Any,
        image: Tensor,
        garment_image: Tensor,
        densepose: Tensor,
        mask: Tensor,
        reference: str,
        reference_interval: int,
        rescale_guidance: bool,
    ) -> io.NodeOutput:
        """Returns model, positive, negative and latent."""
        image, garment_image = gate.picture(image, "image"), gate.picture(garment_image, "garment_image")
        densepose, mask = gate.picture(densepose, "densepose"), gate.masks(mask, "mask")
        loaded = leffa(model, vae, "Leffa Try-On")
        require_batch(image=image, garment_image=garment_image, densepose=densepose, mask=mask)
        require_shape(size_of(densepose), size_of(image))
        if size_of(densepose) != size_of(image):
            raise ValueError(
                f"densepose is {_times(densepose)} pixels, but image is {_times(image)}. If it was made from image, "
                "put Leffa Body Map between, with image connected; else make a new one from image."
            )
        settings = LeffaSettings(_interval(reference, reference_interval), rescale_guidance)
        return io.NodeOutput(*try_on(loaded, image, mask, densepose, garment_image, settings))


class LeffaPoseTransfer(io.ComfyNode):
    """Brings a person into another pose."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="LeffaPoseTransfer",
            display_name="Leffa Pose Transfer",
            category="model/conditioning/reference",
            description=(
                "Prepares a person and a pose for Leffa's pose_transfer model. Connect all four outputs to a KSampler "
                "(cfg 2.5, 50 steps, ddpm, ddim_uniform), then decode."
            ),
            search_aliases=["leffa", "pose transfer", "repose", "person image generation"],
            inputs=[
                *_model_inputs(),
                io.Image.Input("reference_image", tooltip="The person. One, or one per pose."),
                io.Image.Input(
                    "densepose",
                    tooltip="DensePose picture of the pose to take (channels U, V, I; from Leffa DensePose). Its size "
                    "is that of the result; the model is trained at 768 x 1024.",
                ),
                *_sampling_inputs(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        vae: Any,
        reference_image: Tensor,
        densepose: Tensor,
        reference: str,
        reference_interval: int,
        rescale_guidance: bool,
    ) -> io.NodeOutput:
        """Returns model, positive, negative and latent."""
        reference_image = gate.picture(reference_image, "reference_image")
        densepose = gate.picture(densepose, "densepose")
        loaded = leffa(model, vae, "Leffa Pose Transfer")
        require_batch(densepose=densepose, reference_image=reference_image)
        settings = LeffaSettings(_interval(reference, reference_interval), rescale_guidance)
        return io.NodeOutput(*pose_transfer(loaded, reference_image, densepose, settings))


def _model_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="Leffa model from Leffa Loader. The connected model itself is not changed."),
        io.Vae.Input("vae", tooltip="VAE of the model: from Leffa Loader, or any SD1.5 VAE (SDXL for pose transfer)."),
    ]


def _sampling_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "reference",
            options=[EVERY_STEP, ONCE, EVERY_N],
            default=EVERY_STEP,
            tooltip="How often the reference U-Net runs. Every step is the published default; once is its acceleration "
            "and changes the result a little.",
        ),
        io.Int.Input(
            "reference_interval",
            default=5,
            min=1,
            max=1000,
            advanced=True,
            tooltip="For how many steps one run of the reference U-Net is used when reference is 'every n steps'.",
        ),
        io.Boolean.Input(
            "rescale_guidance",
            default=True,
            advanced=True,
            tooltip="Rescale the guided prediction as the published pipeline does. Off gives plain guidance.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Model.Output(display_name="model", tooltip="The model with the reference, for KSampler."),
        io.Conditioning.Output(display_name="positive", tooltip="For KSampler: what to paint, with the reference."),
        io.Conditioning.Output(display_name="negative", tooltip="For KSampler: the same without the reference."),
        io.Latent.Output(display_name="latent", tooltip="Empty latent of the right size and batch, for KSampler."),
    ]


def _interval(reference: str, interval: int) -> int:
    return {EVERY_STEP: 1, ONCE: 0}.get(reference, interval)


def _times(picture: Tensor) -> str:
    return f"{picture.shape[2]} x {picture.shape[1]}"


def require_batch(**pictures: Tensor) -> None:
    """Batches go together when all are equal, but for single pictures.

    Raises:
        ValueError: two batches of different sizes.
    """
    several = [(name, len(each)) for name, each in pictures.items() if len(each) > 1]
    for name, count in several[1:]:
        other, others = several[0]
        if count != others:
            raise ValueError(
                f"{name} holds a batch of {count}, but {other} one of {others}. Give equal numbers, or one for all."
            )
