"""P3S-Diffusion: A Selective Subject-driven Generation Framework via Point Supervision (arXiv 2412.19533)."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..core.models.vision import whole_picture_tokens
from ..core.p3s.adapter import TrainedAdapter, for_model
from ..core.p3s.kernel import SCHEDULES
from ..core.p3s.settings import EMPTY, LEARNED, NODE, NONE, SAME, Adapter, P3SSettings, Schedule
from ..core.p3s.wrappers import apply_p3s
from ..core.patches.families.table import picture_attentions
from ..core.patches.node_text import text_on_node
from ..core.patches.reference_pass import Reference
from ..core.patches.unet import family, require_image_unet
from ..core.pictures import gate
from .connected import checked
from .p3s_files import P3SAdapterIO
from .shared import encoder, number_input, range_inputs, reference_of, reference_seed_input

AS_TRAINED = "as trained"
NEGATIVES = [AS_TRAINED, SAME, EMPTY, NONE]


class P3SInject(io.ComfyNode):
    """Injects the selected subject of a picture into every self-attention of a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="P3SInject",
            display_name="P3S Inject",
            category="model/patch/reference",
            description=(
                "Puts the subject that Point Mask selected into new scenes: hidden states read from the reference are "
                "injected into every self-attention, strongest late in sampling. With an adapter from P3S Train the "
                "trained network reads them, as in the paper; without one the model itself does (training-free), "
                "which is below the paper's quality."
            ),
            search_aliases=["p3s", "subject", "identity", "likeness", "personalization", "reference", "subject-driven"],
            inputs=[
                *_main_inputs(),
                *_reference_inputs(),
                *_advanced_inputs(),
                *_adapter_inputs(),
                *_switch_inputs(),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the injection. The connected model itself is not changed.")
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        strength: float,
        schedule: str,
        value_strength: float,
        alpha: float,
        beta: float,
        exponent: float,
        start_percent: float,
        end_percent: float,
        reference_seed: int,
        reference_image: torch.Tensor | None = None,
        vae: Any | None = None,
        reference_latent: dict[str, Any] | None = None,
        subject_mask: torch.Tensor | None = None,
        adapter: TrainedAdapter | None = None,
        clip_vision: Any | None = None,
        identity_at_zero: bool = True,
        mask: torch.Tensor | None = None,
        negative: str = AS_TRAINED,
        noise_bias: float = 0.0,
    ) -> io.NodeOutput:
        """Returns a patched clone of the model."""
        if adapter is None:
            picture_attentions(model, NODE)
        else:
            require_image_unet(model, f"{NODE} with an adapter")
        if reference_image is not None:
            reference_image = gate.one_picture(reference_image, "reference_image")
        samples = _samples(model, reference_image, vae, reference_latent)
        injection = P3SSettings(
            reference=Reference(samples, None, reference_seed),
            adapter=_adapter(model, adapter, clip_vision, reference_image, identity_at_zero),
            subject_mask=gate.optional_masks(subject_mask, "subject_mask"),
            strength=strength,
            value_strength=value_strength,
            schedule=Schedule(schedule, alpha, beta, exponent),
            start_percent=start_percent,
            end_percent=end_percent,
            mask=gate.region(mask, "mask"),
            negative=_negative(negative, adapter),
            noise_bias=noise_bias,
        )
        return io.NodeOutput(apply_p3s(model, injection))


def _negative(chosen: str, adapter: TrainedAdapter | None) -> str:
    if chosen != AS_TRAINED:
        return chosen
    return SAME if adapter is None else adapter.negative


def _samples(model: Any, image: torch.Tensor | None, vae: Any | None, latent: dict[str, Any] | None) -> torch.Tensor:
    """(B, C, h, w) of the reference on the CPU, from the picture or the latent, whichever is connected."""
    if image is not None and latent is not None:
        raise ValueError(f"{NODE} got both reference_image and reference_latent, but needs only one of them.")
    name = "The latent of the reference"
    if latent is not None:
        return reference_of(model, latent, name)
    if image is None:
        raise ValueError(f"{NODE} got no reference. Connect reference_image and vae, or reference_latent.")
    if vae is None:
        raise ValueError("reference_image is connected, but vae is not. Connect the VAE of the model.")
    return encoder(model, vae, name)(image)


def _adapter(
    model: Any,
    trained: TrainedAdapter | None,
    clip_vision: Any | None,
    image: torch.Tensor | None,
    identity_at_zero: bool,
) -> Adapter | None:
    """The trained part with what the vision encoder sees of the reference; None for the training-free mode."""
    if trained is None:
        return None
    if clip_vision is None or image is None:
        missing = "reference_image" if clip_vision is not None else "clip_vision"
        raise ValueError(
            f"An adapter is connected, but {missing} is not. The adapter reads the reference as a picture, through the "
            "vision encoder it was trained with."
        )
    vision = whole_picture_tokens(clip_vision, image)
    width = trained.origin.vision_width
    if vision.shape[-1] != width:
        raise ValueError(
            f"clip_vision gives tokens of width {vision.shape[-1]}, but the adapter was trained with {width}. Connect "
            "the encoder it was trained with."
        )
    text_on_node()(f"With the adapter of '{trained.origin.class_word}'.")  # until there is something to warn of
    return Adapter(for_model(trained, model, family(model)), vision, identity_at_zero)


def _main_inputs() -> list[io.Input]:
    return [
        io.Model.Input(
            "model",
            tooltip="Model of pictures to patch: SD1.5 to Flux 2, Qwen-Image, Z-Image; with an adapter SD1.5, SD2 or "
            "SDXL. The connected model itself is not changed.",
        ),
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=2.0,
            step=0.01,
            tooltip="Multiplies the weight of the injection at every step. Higher: more like the reference, and less "
            "like the prompt. 0 turns the effect off and gives exactly the unpatched result.",
        ),
        io.Combo.Input(
            "schedule",
            options=[*SCHEDULES, LEARNED],
            tooltip="Weight over the steps. paper: from 0.7 at the start of sampling to 1.2 at its end, so that layout "
            "follows the prompt and detail the subject. fixed: 1. decreasing (with the timestep): from 0 at the start "
            "to 1 at the end. increasing: from 1 to 0. off: 0. learned: as an adapter trained with "
            "learned_weight has learned it.",
        ),
        io.Float.Input(
            "value_strength",
            default=0.2,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Lambda of the paper: how much of the reference is also added at the same place of the picture. "
            "Higher keeps the layout of the reference; 0 adds nothing in place.",
        ),
    ]


def _reference_inputs() -> list[io.Input]:
    return [
        io.Image.Input(
            "reference_image",
            optional=True,
            tooltip="Picture of the subject, best the cleaned output of Point Mask, in which the look-alike is painted "
            "over. Needs vae; connect reference_latent instead to encode it yourself.",
        ),
        io.Vae.Input("vae", optional=True, tooltip="VAE of the model, which encodes reference_image."),
        io.Latent.Input(
            "reference_latent", optional=True, tooltip="The reference as a latent of any size, instead of a picture."
        ),
        io.Mask.Input(
            "subject_mask",
            optional=True,
            tooltip="Which part of the reference is the subject, white = injected; from Point Mask. Unconnected = all "
            "of it, with its background.",
        ),
    ]


def _advanced_inputs() -> list[io.Input]:
    return [
        number_input("alpha", 0.5, 1.0, "Schedule paper: how much weaker the injection is at the start of sampling."),
        number_input("beta", 0.2, 1.0, "Schedule paper: added to the weight at every step."),
        number_input(
            "exponent", 2.0, 8.0, "Schedules paper, increasing, decreasing: k, how early the weight changes.", low=0.1
        ),
        *range_inputs(),
        reference_seed_input(),
    ]


def _adapter_inputs() -> list[io.Input]:
    return [
        P3SAdapterIO.Input(
            "adapter",
            optional=True,
            tooltip="A subject trained by P3S Train, or from P3S Load. Needs reference_image and clip_vision. "
            "Unconnected: the model itself reads the reference.",
        ),
        io.ClipVision.Input(
            "clip_vision", optional=True, tooltip="The vision encoder that the adapter was trained with."
        ),
        io.Boolean.Input(
            "identity_at_zero",
            default=True,
            optional=True,
            advanced=True,
            tooltip="Leaves features of an adapter that are exactly zero out of the attention, so that an untrained "
            "adapter changes nothing. Off: they are among the keys, as in the paper's equation.",
        ),
    ]


def _switch_inputs() -> list[io.Input]:
    return [
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where in the generated picture the subject is injected, white; for several subjects, each by a "
            "node of its own. Unconnected = everywhere.",
        ),
        io.Combo.Input(
            "negative",
            options=NEGATIVES,
            default=AS_TRAINED,
            optional=True,
            advanced=True,
            tooltip="What the negative half of the guidance is given, from which the picture is led away. same "
            "reference: the subject, too. empty reference: what the adapter reads where there is none. no injection: "
            "the plain model, so that cfg strengthens the subject. as trained: as the adapter was; without one, the "
            "same reference.",
        ),
        io.Float.Input(
            "noise_bias",
            default=0.0,
            min=-1.0,
            max=1.0,
            step=0.005,
            optional=True,
            advanced=True,
            tooltip="Adds so much of the reference's latent to the noise that sampling starts from, as the paper does. "
            "It biases colours and layout towards the reference. 0.07 is as much of a picture as there is in one that "
            "was noised to the first step of SD1.5.",
        ),
    ]
