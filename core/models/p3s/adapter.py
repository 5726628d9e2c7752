"""Adapters under the host's management of models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.model_patcher
import comfy.ops

from .network import P3SNetwork, initialise

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

PREFIX = "diffusion_model."


def new_adapter(model: ModelPatcher, vision_width: int, seed: int) -> ModelPatcher:
    """An untrained adapter for a model, made of the model's own weights; injected, it changes nothing.

    Args:
        model: SD1.5, SD2 or SDXL.
        vision_width: of the vision encoder's tokens.
        seed: of what has no counterpart in the model.
    """
    base = model.model
    dtype = base.get_dtype()
    operations = comfy.ops.pick_operations(dtype, base.manual_cast_dtype)
    config = base.model_config.unet_config
    network = P3SNetwork(config, vision_width, operations, dtype=dtype, device=model.offload_device)
    initialise(network, {k.removeprefix(PREFIX): v for k, v in model.model_state_dict(PREFIX).items()}, seed)
    network.eval().requires_grad_(False)
    return comfy.model_patcher.CoreModelPatcher(
        network, load_device=model.load_device, offload_device=model.offload_device
    )
