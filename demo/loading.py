"""The demo models inside one process, without a file: for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.sd

from .configs import register
from .weights import state_dict

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


def load(family: str, seed: int = 0) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE of a demo model, made by the host's own checkpoint loader."""
    register()
    model, clip, vae, _ = comfy.sd.load_state_dict_guess_config(state_dict(family, seed))
    # What the host calls for one more copy of the model; its loaders set this only for files.
    model.cached_patcher_init = (load_model, (family, seed))
    return model, clip, vae


def load_model(family: str, seed: int, disable_dynamic: bool = False) -> ModelPatcher:
    """MODEL alone."""
    register()
    model, *_ = comfy.sd.load_state_dict_guess_config(
        state_dict(family, seed), output_vae=False, output_clip=False, disable_dynamic=disable_dynamic
    )
    model.cached_patcher_init = (load_model, (family, seed))
    return model
