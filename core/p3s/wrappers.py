"""P3S on a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrappersMP

from ..patches.binding import Binding
from .run import P3SRun
from .settings import KEY, NODE, P3SSettings, check_settings

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

# Inside the wrappers in which other methods route their attentions: so they find the subject among the keys, whatever
# the order of the nodes.
ON_UNET = Binding(KEY, NODE, P3SRun, place=WrappersMP.DIFFUSION_MODEL)
# The forward pass of a transformer does not always take the options last.
ON_TRANSFORMER = Binding(KEY, NODE, P3SRun)


def apply_p3s(model: ModelPatcher, settings: P3SSettings) -> ModelPatcher:
    """Returns a clone of the model that the subject is injected into.

    A model can take several subjects, one after the other.

    Raises:
        ValueError: the settings are not valid.
    """
    check_settings(settings)
    if settings.is_off:
        return model.clone()
    binding = ON_UNET if isinstance(model.model.diffusion_model, UNetModel) else ON_TRANSFORMER
    asked = (*(binding.carried(model) or ()), settings)
    patched = binding.attached(model, asked)
    patched.set_additional_models(KEY, [each.adapter.network for each in asked if each.adapter is not None])
    return patched
