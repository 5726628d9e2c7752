"""Small Leffa models, pictures for them, and short sampling runs."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import comfy.sample
import torch
from refattention.core.leffa.loader import LeffaParts, from_state_dict
from refattention.core.leffa.wrappers import attach_reference_unet
from refattention.nodes.leffa import EVERY_STEP, LeffaTryOn
from refattention_demo import leffa
from refattention_demo.families import UNetSize
from torch import Tensor

SIZES = {
    "sd15": UNetSize(64, (1, 2), (1, 1), 8, use_linear_in_transformer=False, num_heads=8),
    "sdxl": UNetSize(64, (1, 2, 2), (0, 1, 2), 8, use_linear_in_transformer=True, num_head_channels=64),
}
KINDS = list(SIZES)


def weights(kind: str = "sd15", seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    """A checkpoint with plain random weights: tame enough to compare numbers."""
    generator = torch.Generator().manual_seed(seed)

    def make(shape: tuple[int, ...]) -> Tensor:
        random = torch.randn(shape, generator=generator)
        return random * random[0].numel() ** -0.5 if len(shape) > 1 else 0.5 + 0.1 * random

    return leffa.random_state_dict(replace(SIZES[kind], **changes), make)


@functools.cache
def parts(kind: str = "sd15") -> LeffaParts:
    """Both U-Nets of a small model."""
    return from_state_dict(weights(kind), f"{kind}.safetensors")


def model(kind: str = "sd15", cache_bytes: int = 0) -> Any:
    """What the loader node gives."""
    return attach_reference_unet(parts(kind).generative, parts(kind).reference, cache_bytes)


class AveragingVAE:
    """Latents that are means of 8 x 8 pixels."""

    def __init__(self, channels: int = 4) -> None:
        self._channels = channels

    def encode(self, picture: Tensor) -> Tensor:
        """(B, H, W, 3) -> (B, channels, H / 8, W / 8)."""
        means = torch.nn.functional.avg_pool2d(picture.movedim(-1, 1) * 2 - 1, 8)
        return means[:, [i % 3 for i in range(self._channels)]] * 3


def picture(*size: int, seed: int = 0) -> Tensor:
    """(B, H, W, 3) of noise."""
    return torch.rand(*size, 3, generator=torch.Generator().manual_seed(seed))


def half_mask(height: int, width: int, batch: int = 1) -> Tensor:
    """The lower half."""
    mask = torch.zeros(batch, height, width)
    mask[:, height // 2 :] = 1
    return mask


def try_on(patcher: Any, **inputs: Any) -> tuple[Any, Any, Any, Any]:
    """Outputs of LeffaTryOn for one small person and one garment, or with what is given instead."""
    person = inputs.pop("image", picture(1, 64, 48, seed=1))
    size = tuple(person.shape[1:3])
    values = {
        "vae": AveragingVAE(),
        "garment_image": picture(1, 48, 48, seed=2),
        "densepose": picture(1, *size, seed=3),
        "mask": half_mask(*size),
        "reference": EVERY_STEP,
        "reference_interval": 5,
        "rescale_guidance": True,
        **inputs,
    }
    return tuple(LeffaTryOn.execute(patcher, image=person, **values))


def sample(outputs: tuple[Any, Any, Any, Any], **settings: Any) -> Tensor:
    """KSampler on the outputs of a Leffa node."""
    patcher, positive, negative, latent = outputs
    values = {"steps": 4, "cfg": 2.5, "sampler": "ddpm", "scheduler": "ddim_uniform", "seed": 7, **settings}
    noise = comfy.sample.prepare_noise(latent["samples"], values["seed"])
    with torch.inference_mode():
        return comfy.sample.sample(
            patcher, noise, values["steps"], values["cfg"], values["sampler"], values["scheduler"], positive, negative,
            latent["samples"], seed=values["seed"], callback=values.get("callback"), disable_pbar=True,
        )  # fmt: skip
