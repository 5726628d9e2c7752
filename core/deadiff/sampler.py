"""The DDIM loop of DEADiff's official application, in the terms of the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import comfy.samplers
import torch
from comfy.k_diffusion.sampling import sample_euler
from torch import Tensor

from .settings import NODE

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class OfficialDDIM(comfy.samplers.KSAMPLER):
    """DDIM with eta 0 that starts and ends where the official loop does.

    The host's ddim is the same but for two things: it takes a schedule that begins below the highest noise level for
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
    """DDIM is Euler's method in the variables of the host; the last step leaves the noise scaled to unit variance."""
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
        raise RuntimeError(f"DEADiffSampler needs a model with discrete noise levels, which {NODE}'s SD1.5 has.")
    sigmas = comfy.samplers.ddim_scheduler(sampling, steps)
    return torch.cat([sigmas[:-1], levels[:1].to(sigmas)])
