"""What KSampler does, for nodes that sample inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.sample
import comfy.samplers
from torch import Tensor

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

SAMPLERS: list[str] = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS: list[str] = comfy.samplers.KSampler.SCHEDULERS


@dataclass(frozen=True)
class Sampling:
    """The settings of KSampler."""

    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    denoise: float


def sampled(
    model: ModelPatcher,
    positive: list[Any],
    negative: list[Any],
    latent: Tensor,
    mask: Tensor,
    sampling: Sampling,
    progress: Callable[[int], object],
) -> Tensor:
    """Paints a latent anew where a mask is 1.

    Args:
        latent: (B, C, h, w).
        mask: (1, 1, h, w).
        progress: is told of each step.
    """

    def callback(_step: int, _denoised: Tensor, _x: Tensor, _total: int) -> None:
        progress(1)

    return comfy.sample.sample(
        model, comfy.sample.prepare_noise(latent, sampling.seed), sampling.steps, sampling.cfg, sampling.sampler_name,
        sampling.scheduler, positive, negative, latent, denoise=sampling.denoise, noise_mask=mask, callback=callback,
        disable_pbar=True, seed=sampling.seed,
    )  # fmt: skip
