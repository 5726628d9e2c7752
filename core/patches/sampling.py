"""What KSampler does, for nodes that sample by themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.sample
import comfy.samplers
import comfy.utils
from torch import Tensor

from .copies import passing_clone

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
    sigmas: Tensor | None = None  # in place of steps, scheduler and denoise


def sampled(
    model: ModelPatcher,
    positive: list[Any],
    negative: list[Any],
    latent: Tensor,
    mask: Tensor | None,
    sampling: Sampling,
    progress: Callable[[int], object],
    noise_numbers: list[int] | None = None,
) -> Tensor:
    """Repaints a latent where a mask is 1.

    Args:
        latent: (B, C, h, w).
        mask: (1, 1, h, w); None is everywhere.
        progress: called after each step.
        noise_numbers: which of the seed's noises each sample gets; None is one after the other.
    """

    def callback(_step: int, _denoised: Tensor, _x: Tensor, _total: int) -> None:
        progress(1)

    model = passing_clone(model)
    noise = comfy.sample.prepare_noise(latent, sampling.seed, noise_numbers)
    return comfy.sample.sample(
        model, noise, sampling.steps, sampling.cfg, sampling.sampler_name, sampling.scheduler, positive, negative,
        latent, denoise=sampling.denoise, noise_mask=mask, sigmas=sampling.sigmas, callback=callback,
        disable_pbar=True, seed=sampling.seed,
    )  # fmt: skip


def sampled_latent(
    model: ModelPatcher, positive: list[Any], negative: list[Any], latent: Mapping[str, Any], sampling: Sampling
) -> dict[str, Any]:
    """KSampler's output for a latent in ComfyUI's form: empty ones get the shape that the model needs."""
    ratios = ("downscale_ratio_spacial", "downscale_ratio_temporal")
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"], *(latent.get(each) for each in ratios))
    mask, numbers = latent.get("noise_mask"), latent.get("batch_index")
    progress = comfy.utils.ProgressBar(sampling.steps if sampling.sigmas is None else len(sampling.sigmas) - 1)
    out = sampled(model, positive, negative, samples, mask, sampling, progress.update, numbers)
    return {**{key: value for key, value in latent.items() if key not in ratios}, "samples": out}
