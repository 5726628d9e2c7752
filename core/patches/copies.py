"""The copies of a model on further devices that ComfyUI's multi-GPU split makes for each run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy.patcher_extension import CallbacksMP

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

KEY = "refattention.copies"


def passing_clone(model: ModelPatcher) -> ModelPatcher:
    """A clone to be sampled and let go at once, which leaves no gap in ComfyUI's list of loaded models.

    Where a model of that list goes, its parent takes the place. ComfyUI gives each copy the model itself for a parent,
    which goes with it, so that weights stay loaded that nothing can unload; here it is the copy before.
    """
    clone = model.clone()
    clone.add_callback_with_key(CallbacksMP.ON_MATCH_MULTIGPU_CLONES, KEY, _descend)
    return clone


def _descend(model: ModelPatcher, copy: ModelPatcher) -> None:
    copy.parent = next(each for each in model.get_additional_models_with_key("multigpu") if each.is_clone(copy))
