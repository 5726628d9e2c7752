"""Tiny editing models, a codec that fits any family, and attention written out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import oracle
import torch
from comfy.model_patcher import ModelPatcher
from families import FAMILIES, TinyFamily, random_model, tiny_model, tiny_prompt
from refattention.core.patches.single_evaluation import evaluate_once
from torch import Tensor
from torch.nn import functional as F

EDITING = ("flux", "flux2", "qwen", "mage", "krea2")  # Flux Kontext is a Flux
METHODS = {
    "flux": ("offset", "index", "uxo"),
    "flux2": ("index", "offset", "index_timestep_zero"),
    "qwen": ("index", "negative_index", "offset", "index_timestep_zero"),
    "mage": (),
    "krea2": ("index", "index_timestep_zero"),
}
_MODELS: dict[str, ModelPatcher] = {}


def editing_model(name: str) -> ModelPatcher:
    """A clone of a tiny model."""
    if name not in _MODELS:
        _MODELS[name] = random_model(editing_family(name))
    return _MODELS[name].clone()


def editing_family(name: str) -> TinyFamily:
    """Of an editing model; Flux 2 lays references out as ComfyUI finds it in its files."""
    family = FAMILIES[name]
    own = {"default_ref_method": "index"} if name == "flux2" else {}
    return replace(family, config={**family.config, **own})


def prompt(name: str, seed: int, method: str | None = None, latents: tuple[Tensor, ...] = ()) -> list[Any]:
    """A prompt as it comes out of ComfyUI's nodes for editing models."""
    ((text, options),) = tiny_prompt(name, seed)
    more: dict[str, Any] = {} if method is None else {"reference_latents_method": method}
    if latents:
        more["reference_latents"] = list(latents)
    if name == "qwen":
        more["attention_mask"] = torch.tensor([[1, 1, 1, 1, 0]])
    return [[text, {**options, **more}]]


class AnyCodec:
    """A VAE without loss of place: each latent holds what is in its cell, in as many channels as the family has.

    Args:
        name: of the family.
        brightness: how much latents are about the colour of a cell, beside what changes in it; in a trained VAE less.
        scale: of the latents.
    """

    def __init__(self, name: str, brightness: float = 1.0, scale: float = 1.0) -> None:
        self._brightness, self._scale = brightness, scale
        size = FAMILIES[name].size
        self._channels, self._is_video = size[0], len(size) == 4
        self.cell: int = tiny_model(name).model.latent_format.spacial_downscale_ratio
        if self.cell == 1:  # a model of pixels
            return
        generator = torch.Generator().manual_seed(0)
        parts = 3 * (self.cell // 2) ** 2
        mixing = torch.randn(max(parts, self._channels), max(parts, self._channels), generator=generator)
        self._mixing = torch.linalg.qr(mixing)[0][: self._channels, :parts]

    def encode(self, picture: Tensor) -> Tensor:
        """(B, H, W, 3) -> latents."""
        if self.cell == 1:
            return picture[..., :3].movedim(-1, 1) * 2 - 1
        half = F.avg_pool2d(picture[..., :3].movedim(-1, 1), 2)
        parts = F.pixel_unshuffle(half * 2 - 1, self.cell // 2)
        parts = _with_colour(parts, self._brightness) * self._scale
        latent = torch.einsum("cp,bphw->bchw", self._mixing, parts)
        return latent.unsqueeze(2) if self._is_video else latent

    def decode(self, latent: Tensor) -> Tensor:
        """Back as well as it goes."""
        if self.cell == 1:
            return latent.movedim(1, -1) / 2 + 0.5
        flat = latent[:, :, 0] if self._is_video else latent
        parts = torch.einsum("cp,bchw->bphw", self._mixing, flat) / self._scale
        parts = _with_colour(parts, 1 / self._brightness)
        picture = F.interpolate(F.pixel_shuffle(parts, self.cell // 2), scale_factor=2).movedim(1, -1) / 2 + 0.5
        return picture.unsqueeze(1) if self._is_video else picture


def _with_colour(parts: Tensor, share: float) -> Tensor:
    """(B, 3 n, h, w) with the mean of each colour in a cell multiplied."""
    colours = parts.unflatten(1, (3, -1))
    return (colours + (share - 1) * colours.mean(2, keepdim=True)).flatten(1, 2)


def seen_by_host(
    patcher: ModelPatcher, conditioning: list[Any], samples: Tensor, timestep: int, seed: int
) -> list[tuple[Tensor, int]]:
    """Full softmax of every attention of one pass, mean over heads: (L, L) float64, and the number of text tokens.

    Read by an override of ComfyUI's attention; a mask counts as it is added to the scores.
    """
    found: list[tuple[Tensor, int]] = []

    def watch(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **kwargs: Any) -> Any:
        flat = [t.transpose(1, 2).flatten(2)[0] for t in (q, k)]
        scores = oracle.scores(*flat, heads)
        if mask is not None:
            scores = scores + mask.double().reshape(-1, mask.shape[-2], mask.shape[-1])
        found.append((scores.softmax(-1).mean(0), heads))
        return func(q, k, v, heads, mask, **kwargs)

    watched = patcher.clone()
    watched.model_options["transformer_options"]["optimized_attention_override"] = watch
    with torch.inference_mode():
        evaluate_once(watched, conditioning, samples, timestep, seed)
    return found
