"""Which class of diffusion model the host builds for each of the models it knows, without building it."""

from __future__ import annotations

from typing import Any
from unittest import mock

import comfy.model_base
import comfy.supported_models

NO_PICTURES = {
    *("StableAudio", "StableAudio3", "ACEStep", "ACEStep15", "Hunyuan3Dv2", "Hunyuan3Dv2mini", "Hunyuan3Dv2_1"),
    *("TripoSplat", "RT_DETR_v4", "SAM3", "SAM31", "DepthAnything3"),
}


class Built(Exception):
    """Ends the making of a model where its architecture is known."""


def architecture_of(config: type) -> type:
    """The class of the diffusion model of a class in `comfy.supported_models`."""

    def note(self: Any, *args: Any, unet_model: type = comfy.model_base.UNetModel, **rest: Any) -> None:
        raise Built(unet_model)

    with mock.patch.object(comfy.model_base.BaseModel, "__init__", note):
        try:
            found = {"in_channels": 4, "hidden_size": 64, **config.unet_config}  # what some ask for
            config(found).get_model({"cc_projection.weight": None, "cc_projection.bias": None}, "")
        except Built as built:
            (architecture,) = built.args
            return architecture
    raise AssertionError(f"{config.__name__} builds no model of the host")


def pictures() -> list[type]:
    """The classes for models of pictures and videos."""
    return [config for config in comfy.supported_models.models if config.__name__ not in NO_PICTURES]
