"""DEADiff on a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..patches.binding import Binding
from .run import DEADiffRun
from .settings import NODE, DEADiffSettings, check_layers, check_no_replacement, check_settings, require_sd15

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

# The style belongs to the model: it also acts where another method reads its reference with it.
BINDING = Binding("refattention.deadiff", NODE, DEADiffRun, reads_references=True)


def apply_deadiff(model: ModelPatcher, settings: DEADiffSettings) -> ModelPatcher:
    """Returns a clone of the model that follows the style.

    Raises:
        ValueError: the settings are not valid, or the model has a style already.
        RuntimeError: the model is no SD1.5 model, its layers do not fit, or another node replaces them.
    """
    check_settings(settings)
    check_layers(require_sd15(model), settings.image)
    if BINDING.carried(model) is not None:
        raise ValueError(
            f"The model already went through a {NODE} node, and can follow only one. "
            f"Connect all pictures to one node, as a batch."
        )
    check_no_replacement(model.model_options["transformer_options"], settings.image)
    return model.clone() if settings.is_off else BINDING.attached(model, settings)
