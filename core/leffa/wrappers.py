"""Leffa on a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..patches.binding import Binding
from .kernel import rescale_guidance
from .reference import KEY
from .run import LeffaRun
from .settings import LeffaSettings
from .tokens import FeatureCache

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

BINDING = Binding(KEY, "Leffa", LeffaRun)
AFTER_GUIDANCE = "sampler_post_cfg_function"  # in ComfyUI's model_options


def attach_reference_unet(generative: ModelPatcher, reference: ModelPatcher, cache_bytes: int) -> ModelPatcher:
    """Returns a clone of the generative model that brings its reference U-Net along, under ComfyUI's management."""
    model = generative.clone()
    model.set_additional_models(KEY, [reference])
    model.set_attachments(KEY, FeatureCache(cache_bytes, model.offload_device))
    return model


def apply_leffa(model: ModelPatcher, settings: LeffaSettings) -> ModelPatcher:
    """Returns a clone of a Leffa model whose self-attentions look at the references in its conditioning.

    It follows these settings in place of those of an earlier node, whose rescaling would come on top.
    """
    patched = BINDING.attached(model, settings)
    if earlier := patched.model_options.get(AFTER_GUIDANCE):
        patched.model_options[AFTER_GUIDANCE] = [each for each in earlier if each is not _rescale]
    if settings.rescale:
        patched.set_model_sampler_post_cfg_function(_rescale)
    return patched


def _rescale(args: dict[str, Any]) -> Tensor:
    """Rescaled guidance on the noise prediction, with the guidance scale itself as phi."""
    x, scale = args["input"], args["cond_scale"]
    if args["uncond"] is None or scale <= 0:
        return args["denoised"]
    return x - rescale_guidance(x - args["denoised"], x - args["cond_denoised"], scale)
