"""The base model as training sees it: a copy of its U-Net, and its own view of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.ops
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

PREFIX = "diffusion_model."


@dataclass(frozen=True, eq=False)
class Prompt:
    """A text as the U-Net takes it.

    Attributes:
        context: (1, tokens, width).
        y: (1, width), what some families add to the timestep.
    """

    context: Tensor
    y: Tensor | None


def frozen_copy(model: ModelPatcher, dtype: torch.dtype) -> UNetModel:
    """A copy of a model's U-Net with its LoRAs, through which gradients pass; the model itself is not touched.

    The weights that the host's loaders make take no part in gradients, so there is no doing without a copy.
    """
    comfy.model_management.unload_model_and_clones(model)
    config = {**model.model.model_config.unet_config, "dtype": dtype, "device": model.load_device}
    unet = UNetModel(**config, operations=comfy.ops.manual_cast)
    with torch.no_grad():
        for name, weight in unet.state_dict().items():
            weight.copy_(model.patch_weight_to_device(PREFIX + name, model.load_device, return_weight=True))
    return unet.eval().requires_grad_(False)


def encode(model: ModelPatcher, conditioning: list[Any], latent: Tensor) -> Prompt:
    """A conditioning of the host, for pictures of the size of a latent (1, c, h, w)."""
    entries = {"positive": comfy.sampler_helpers.convert_cond(conditioning)}
    device = model.load_device
    encoded = comfy.samplers.process_conds(model.model, latent, entries, device, latent)["positive"][0]["model_conds"]
    y = plain(encoded["y"].cond.to(device)) if "y" in encoded else None
    return Prompt(plain(encoded["c_crossattn"].cond.to(device)), y)


class Noised:
    """Pictures at noise levels of a model's schedule, as training shows them to its U-Net.

    Args:
        sampling: the host's `model_sampling` of the model.
        latents, noise: (B, c, h, w) on one device.
        timesteps: (B,) whole numbers.
        dtype: of the U-Net.

    Attributes:
        entering: (B, c, h, w), what the U-Net is given.
        timesteps: (B,), what it is told.
    """

    def __init__(self, sampling: Any, latents: Tensor, noise: Tensor, timesteps: Tensor, dtype: torch.dtype) -> None:
        self._sampling = sampling
        self._sigma = sampling.sigma(timesteps).to(latents.device, torch.float32)[:, None, None, None]
        self._x = sampling.noise_scaling(self._sigma, noise, latents)
        self.entering: Tensor = sampling.calculate_input(self._sigma, self._x).to(dtype)
        self.timesteps: Tensor = sampling.timestep(self._sigma.flatten()).float()

    def predicted(self, out: Tensor) -> Tensor:
        """The noise that an output of the U-Net stands for, whatever the model predicts."""
        denoised = self._sampling.calculate_denoised(self._sigma, out.float(), self._x)
        noise: Tensor = (self._x - denoised) / self._sigma
        return noise


def denoise(sampling: Any, predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor) -> Tensor:
    """Pictures at a noise level without their noise, as a U-Net predicts them.

    Args:
        sampling: ComfyUI's `model_sampling` of the model.
        predict: what the U-Net makes of what it is given (B, c, h, w), and told (B,).
        x: (B, c, h, w).
        sigma: (B,).
    """
    level = sigma[:, None, None, None]
    out = predict(sampling.calculate_input(level, x), sampling.timestep(sigma).float())
    denoised: Tensor = sampling.calculate_denoised(level, out.float(), x)
    return denoised


def plain(tensor: Tensor) -> Tensor:
    """A copy that can be part of a gradient's graph, which what the host's nodes make cannot."""
    return tensor.detach().clone()
