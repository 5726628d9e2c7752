"""RefDrop on a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..patches.binding import Binding
from .reader import KEY
from .run import METHOD, RefDropRun
from .settings import RefDropSettings, check_settings, check_total_strength

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

BINDING = Binding(KEY, METHOD, RefDropRun)


def apply_refdrop(model: ModelPatcher, settings: RefDropSettings) -> ModelPatcher:
    """Returns a clone of the model that is guided as asked, besides what earlier nodes asked for.

    Raises:
        ValueError: the settings are not valid or recorded with another model, or all strengths of the model sum up
            beyond [-1, 1].
    """
    check_settings(settings)
    if settings.recorded is not None:
        settings.recorded.check(model, settings.blocks)
    if settings.is_off:
        return model.clone()
    asked = (*(BINDING.carried(model) or ()), settings)
    check_total_strength(asked)
    return BINDING.attached(model, asked)
