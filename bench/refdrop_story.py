"""A story of ten pictures that follow one reference: its time over that of ten plain pictures.

Four pictures of the story are sampled, the one that fills the cache and three that find it full, with three plain ones
in between; each of the others is taken to last as long as the median of its kind.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from models import prompt, random_model
from refattention.core.patches.blocks import CHOICES, select
from refattention.core.patches.reference_pass import Reference
from refattention.core.patches.unet import self_attention_blocks
from refattention.core.refdrop.cache import ReferenceCache
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from torch import Tensor

FAMILY = "sd15"
PICTURES = 10


def rows(pixels: int = 256, steps: int = 6) -> dict[str, dict[str, Any]]:
    """The row; its detail has the differences that the cache makes to a picture."""
    story = Story(pixels, steps)
    whole, half = ReferenceCache(4 * 2**30), ReferenceCache(4 * 2**30, is_half=True)
    guided, rounding = story.guided(whole), story.guided(half)
    first = story.picture(0, guided)
    pairs = [(story.picture(number, story.model), story.picture(number, guided)) for number in (1, 2, 3)]
    plain, following = ([picture.seconds for picture in pictures] for pictures in zip(*pairs, strict=True))
    cached = pairs[0][1]
    uncached = story.picture(1, rounding)  # which is only being filled
    rounded = story.picture(1, rounding)
    seconds = first.seconds + (PICTURES - 1) * median(following)
    detail = {
        "measured": "3 plain pictures, the first of the story, 3 of the 9 that follow; medians for the rest",
        "steps": steps,
        "plain_s": plain,
        "first_s": first.seconds,
        "following_s": following,
        "cache_MiB": {"float32": whole.size / 2**20, "float16": half.size / 2**20},
        "largest difference to the uncached latent": {
            "float32": _difference(cached, uncached),
            "float16": _difference(rounded, uncached),
        },
        "spread of that latent": uncached.latent.std().item(),
    }
    value = round(seconds / (PICTURES * median(plain)), 4)
    return {
        f"refdrop.story.{FAMILY}": {"value": value, "unit": "times ten plain pictures", "bound": 1.25, "detail": detail}
    }


class Picture:
    """A latent, and the seconds it took."""

    def __init__(self, latent: Tensor, seconds: float) -> None:
        self.latent = latent
        self.seconds = seconds


class Story:
    """Pictures with a prompt and a seed of their own, from one full-size model."""

    def __init__(self, pixels: int, steps: int) -> None:
        self.model = random_model(FAMILY, torch.float32)
        self._shape = (1, 4, pixels // 8, pixels // 8)
        self._steps = steps
        self._reference = Reference(self._noise(99), prompt(FAMILY, 98), 0)

    def guided(self, cache: ReferenceCache) -> ModelPatcher:
        """The model as the node gives it: one for all pictures, whose cache it has."""
        blocks = select(CHOICES[0], "", list(self_attention_blocks(self.model.model.diffusion_model)), FAMILY)
        return apply_refdrop(self.model, RefDropSettings(0.3, blocks, self._reference, cache=cache))

    def picture(self, number: int, model: ModelPatcher) -> Picture:
        """One picture of the story, with the cache as it is."""
        noise = self._noise(number)
        start = time.perf_counter()
        with torch.inference_mode():
            latent = comfy.sample.sample(
                model, noise, self._steps, 7.5, "euler", "normal", prompt(FAMILY, number), prompt(FAMILY, 97),
                torch.zeros_like(noise), seed=number, disable_pbar=True,
            )  # fmt: skip
        return Picture(latent, time.perf_counter() - start)

    def _noise(self, seed: int) -> Tensor:
        return torch.randn(self._shape, generator=torch.Generator().manual_seed(seed))


def _difference(one: Picture, other: Picture) -> float:
    return (one.latent - other.latent).abs().max().item()
