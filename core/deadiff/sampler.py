"""The DDIM and Euler-a loops of DEADiff's official application, in the terms of ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import comfy.samplers
import torch
from comfy.k_diffusion.sampling import sample_euler, sample_euler_ancestral
from comfy.model_sampling import EPS, V_PREDICTION, ModelSamplingDiscrete
from torch import Tensor

from .settings import NODE

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class OfficialDDIM(comfy.samplers.KSAMPLER):
    """DDIM with eta 0 that starts and ends where the official loop does.

    ComfyUI's ddim is the same but for two things: it takes a schedule that begins below the highest noise level for
    the middle of a longer one, and scales the first noise down; and it goes on to noise level 0.
    """

    def __init__(self) -> None:
        super().__init__(_euler_to_last_level)

    def max_denoise(self, model_wrap: Any, sigmas: Tensor) -> bool:
        """Says that sampling starts from pure noise, whatever its level."""
        return True


def _euler_to_last_level(
    model: Callable[..., Tensor], x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, disable: bool
) -> Tensor:
    """DDIM is Euler's method in the variables of ComfyUI; the last step leaves the noise scaled to unit variance."""
    x = sample_euler(model, x, sigmas, extra_args=extra_args, callback=callback, disable=disable)
    return x / (1 + sigmas[-1] ** 2).sqrt()


def official_sigmas(model: ModelPatcher, steps: int) -> Tensor:
    """Noise levels of the official DDIM schedule: every (1000 // steps)-th, from the second on, down to the lowest.

    Args:
        model: with discrete noise levels, as SD1.5 has them.
        steps: asked for; unless it divides their number the schedule has a few more, as in the official code.

    Returns:
        (steps run + 1,) descending.

    Raises:
        RuntimeError: the model has no discrete noise levels.
    """
    sampling = model.get_model_object("model_sampling")
    levels = getattr(sampling, "sigmas", None)
    if levels is None:
        raise RuntimeError(f"DEADiff Sampler needs a model with discrete noise levels, which {NODE}'s SD1.5 has.")
    sigmas = comfy.samplers.ddim_scheduler(sampling, steps)
    return torch.cat([sigmas[:-1], levels[:1].to(sigmas)])


class OfficialEulerAncestral(comfy.samplers.KSAMPLER):
    """Euler ancestral that starts from noise of the first level, as the official application does."""

    def __init__(self) -> None:
        super().__init__(sample_euler_ancestral)

    def max_denoise(self, model_wrap: Any, sigmas: Tensor) -> bool:
        """ComfyUI gives the noise the variance of a noised picture instead, if the first level is the highest."""
        return False


class FractionalTimesteps(ModelSamplingDiscrete, EPS):
    """Between two noise levels the U-Net is told a timestep between theirs; ComfyUI tells it the nearest one."""

    def timestep(self, sigma: Tensor) -> Tensor:
        """Linear in the logarithm of the noise level, as in k-diffusion."""
        levels = self.log_sigmas.to(sigma.device)
        wanted = sigma.log().reshape(-1)
        low = (torch.searchsorted(levels, wanted, right=True) - 1).clamp(0, len(levels) - 2)
        share = (wanted - levels[low]) / (levels[low + 1] - levels[low])
        return (low + share.clamp(0, 1)).reshape(sigma.shape)


def with_fractional_timesteps(model: ModelPatcher) -> ModelPatcher:
    """Returns a clone of the model whose U-Net is told fractional timesteps.

    Raises:
        RuntimeError: its noise levels are not discrete, or it predicts something else than the noise.
    """
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, ModelSamplingDiscrete) or not isinstance(sampling, EPS | V_PREDICTION):
        raise RuntimeError(f"DEADiff Euler Sampler needs a model with discrete noise levels, which {NODE}'s SD1.5 has.")
    if isinstance(sampling, V_PREDICTION):
        raise RuntimeError("DEADiff Euler Sampler needs a model that predicts the noise, but this one predicts v.")
    fractional = FractionalTimesteps(model.model.model_config)
    fractional.set_sigmas(sampling.sigmas)
    patched = model.clone()
    patched.add_object_patch("model_sampling", fractional)
    return patched


def euler_sigmas(model: ModelPatcher, steps: int) -> Tensor:
    """(steps + 1,) noise levels of the official Euler-a loop: equal steps in time from the highest level on, then 0."""
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
