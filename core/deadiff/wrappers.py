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
    """Returns a clone of the model that follows the style, besides those of earlier nodes in other regions.

    Raises:
        ValueError: the settings are not valid, or the model has a style already and one of the two has no mask.
        RuntimeError: the model is no SD1.5 model, its layers do not fit, or another node replaces them.
    """
    check_settings(settings)
    check_layers(require_sd15(model), settings.image)
    if settings.is_off:
        return model.clone()
    asked = (*(BINDING.carried(model) or ()), settings)
    if len(asked) > 1 and any(each.mask is None for each in asked):
        raise ValueError(
            f"The model already went through a {NODE} node, and one of the two has no mask. Give each a mask of its "
            "own, or connect all pictures to one node, as a batch."
        )
    check_no_replacement(model.model_options["transformer_options"], settings.image)
    return BINDING.attached(model, asked)
