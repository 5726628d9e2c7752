"""One evaluation of a model outside a sampler's loop, under ComfyUI's own loading and memory management."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import torch
from torch import Tensor

from .copies import passing_clone

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


SEEDS = 1 << 64


def other_seed(seed: int) -> int:
    """A seed for the noise of a second picture: equal noise at equal places would look alike."""
    return (seed + 1) % SEEDS


def evaluate_once(model: ModelPatcher, positive: list[Any], samples: Tensor, timestep: int, seed: int) -> None:
    """Noises finished latents to a timestep and passes them through the model once, without guidance.

    Of what other nodes put on the model only that acts which lies inside of it: guidance that evaluates it again,
    context windows and tiles belong to sampling. Cancel is looked for first.

    Args:
        positive: the conditioning, in ComfyUI's form.
        samples: (B, C, h, w).
        timestep: 0 to 999, as for `noise_level`.
        seed: of the noise.
    """

    def one_evaluation(denoise: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], **_: Any) -> Tensor:
        return denoise(x, sigmas[:1].expand(len(x)), **extra_args)

    comfy.model_management.throw_exception_if_processing_interrupted()
    model = passing_clone(model)
    model.model_options = {"transformer_options": model.model_options["transformer_options"]}
    sigma = noise_level(model.get_model_object("model_sampling"), timestep)
    noise = torch.randn(samples.shape, generator=torch.Generator("cpu").manual_seed(seed))
    sampler = comfy.samplers.KSAMPLER(one_evaluation)
    sigmas = torch.cat([sigma, torch.zeros(1)])
    comfy.samplers.sample(
        model, noise, positive, positive, 1.0, model.load_device, sampler, sigmas, model.model_options,
        latent_image=samples, disable_pbar=True, seed=seed,
    )  # fmt: skip


def noise_level(sampling: Any, timestep: int) -> Tensor:
    """The (1,) sigma of a timestep, 0 to 999: in a flow model the share of noise in thousandths, as the model is told.

    A schedule without timesteps (EDM: SVD, Playground) is cut into as many steps, as ComfyUI lists them.

    Note:
        The shift that such a model's schedule has is about which levels a sampler visits; the level itself is meant.
    """
    if isinstance(sampling, comfy.model_sampling.CONST):
        return torch.tensor([timestep / 1000])
    if isinstance(sampling, comfy.model_sampling.ModelSamplingCosmosRFlow):
        return sampling.sigma(torch.tensor([timestep / 1000])).reshape(1).cpu()
    if isinstance(sampling, comfy.model_sampling.ModelSamplingContinuousEDM):
        return sampling.sigmas[timestep : timestep + 1].cpu()
    return sampling.sigma(torch.tensor([float(timestep)]))
