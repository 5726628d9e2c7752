"""Inputs and checks that several nodes have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy_api.latest import io

from ..core.patches.sampling import SAMPLERS, SCHEDULERS
from ..core.patches.unet import family
from ..core.pictures import gate
from ..core.pictures.grid import pad_to_cells


def range_inputs() -> list[io.Input]:
    """`start_percent` and `end_percent`."""
    return [
        number_input(
            "start_percent", 0.0, 1.0, "Part of the sampling schedule at which the effect begins.", step=0.001
        ),
        number_input("end_percent", 1.0, 1.0, "Part of the sampling schedule at which the effect ends.", step=0.001),
    ]


def number_input(
    name: str, default: float, high: float, tooltip: str, low: float = 0.0, step: float = 0.01
) -> io.Input:
    """A number among the advanced inputs, which the editor folds away."""
    return io.Float.Input(name, default=default, min=low, max=high, step=step, advanced=True, tooltip=tooltip)


def seed_input(tooltip: str, name: str = "seed", advanced: bool = True, is_drawn_anew: bool = False) -> io.Input:
    """A seed; `is_drawn_anew` offers another one after each run."""
    return io.Int.Input(
        name,
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=is_drawn_anew,
        advanced=advanced,
        tooltip=tooltip,
    )


def step_inputs(steps: int, cfg: float) -> list[io.Input]:
    """`steps` and `cfg` of a node that samples."""
    return [
        io.Int.Input("steps", default=steps, min=1, max=10000, tooltip="Steps of the sampler, as in KSampler."),
        io.Float.Input(
            "cfg", default=cfg, min=0.0, max=100.0, step=0.1, tooltip="Strength of the prompt, as in KSampler."
        ),
    ]


def sampler_inputs(advanced: bool) -> list[io.Input]:
    """`sampler_name` and `scheduler` of a node that samples."""
    return [
        io.Combo.Input(
            "sampler_name", options=SAMPLERS, default="euler", advanced=advanced, tooltip="Sampler, as in KSampler."
        ),
        io.Combo.Input(
            "scheduler", options=SCHEDULERS, default="normal", advanced=advanced, tooltip="Scheduler, as in KSampler."
        ),
    ]


def reference_seed_input() -> io.Input:
    """`reference_seed`."""
    return seed_input("Seed of the noise that brings the reference to the noise level of each step.", "reference_seed")


def encoder(model: Any, vae: Any, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model's latents (B, C, h, w) of pictures (B, H, W, 3), on the CPU; refuses a VAE of another model.

    Args:
        name: of the latents, for the message.
    """

    cell: int = model.model.latent_format.spacial_downscale_ratio

    def encode(picture: torch.Tensor) -> torch.Tensor:
        is_tiny = min(picture.shape[1:3]) < cell  # which ComfyUI would crop to nothing
        return require_latent_of(model, vae.encode(pad_to_cells(picture, cell) if is_tiny else picture), name)

    return encode


def reference_of(model: Any, latent: dict[str, Any], name: str) -> torch.Tensor:
    """The samples of a LATENT that is to be a reference, on the CPU.

    Raises:
        ValueError: as of `require_latent_of`, or it shows nothing.
    """
    samples = require_latent_of(model, latent["samples"], name)
    if not samples.any():
        raise ValueError(f"{name} is an empty latent, which shows nothing. Connect a picture, through VAE Encode.")
    return samples


def require_latent_of(model: Any, samples: torch.Tensor, name: str) -> torch.Tensor:
    """Returns a reference's latent, on the CPU.

    Raises:
        ValueError: its channels are not those of the model's latents, it has sound besides, is empty, or holds what is
            no number.
    """
    if samples.is_nested:
        raise ValueError(f"{name} is a video together with its sound. Put Separate AV Latent between.")
    channels, dimensions = model.model.latent_format.latent_channels, model.model.latent_format.latent_dimensions
    if dimensions == 3 and samples.ndim == 4 and samples.shape[1] == channels:
        samples = samples.unsqueeze(2)  # a picture where the model takes videos
    if samples.ndim != 2 + dimensions or samples.shape[1] != channels or not samples.numel():
        frames = "frames, " if dimensions == 3 else ""
        raise ValueError(
            f"{name} has the shape {tuple(samples.shape)}, but this {family(model)} model needs "
            f"(batch, {channels}, {frames}height, width). Encode the reference with the VAE that belongs to the model."
        )
    gate.require_numbers(samples, name)
    return samples.detach().cpu()
