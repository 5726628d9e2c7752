"""A node pack for a real server: tiny editing models in place of published ones, too large to run in a test."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.append(str(Path(__file__).resolve().parents[1]))
from families import FAMILIES, tiny_model, tiny_prompt

CELL = 8


class Cells:
    """A VAE: a latent holds what is in its cell, as far as its channels go."""

    def __init__(self, name: str) -> None:
        size = FAMILIES[name].size
        self._channels, self._is_video = size[0], len(size) == 4
        mixing = torch.randn(3 * CELL * CELL, 3 * CELL * CELL, generator=torch.Generator().manual_seed(0))
        self._mixing = torch.linalg.qr(mixing)[0][: self._channels]

    def encode(self, picture: Tensor) -> Tensor:
        parts = F.pixel_unshuffle(picture[..., :3].movedim(-1, 1) * 2 - 1, CELL)
        latent = torch.einsum("cp,bphw->bchw", self._mixing, parts)
        return latent.unsqueeze(2) if self._is_video else latent

    def decode(self, latent: Tensor) -> Tensor:
        flat = latent[:, :, 0] if self._is_video else latent
        parts = torch.einsum("cp,bchw->bphw", self._mixing, flat)
        picture = F.pixel_shuffle(parts, CELL).movedim(1, -1) / 2 + 0.5
        return picture.unsqueeze(1) if self._is_video else picture


class TinyEditing:
    """Model, VAE and two prompts of a family of `families.FAMILIES`."""

    RETURN_TYPES = ("MODEL", "VAE", "CONDITIONING", "CONDITIONING")
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"family": ("STRING", {})}}

    def load(self, family: str) -> tuple[Any, ...]:
        return tiny_model(family), Cells(family), tiny_prompt(family, 1), tiny_prompt(family, 2)


NODE_CLASS_MAPPINGS = {"TinyEditing": TinyEditing}
