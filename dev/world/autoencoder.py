"""A narrow autoencoder whose layers are TAESD's. `demo/world/expand.py` widens it by zeros, which changes nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import VAE


class Block(nn.Module):
    """relu(x + three convolutions)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.conv = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        return F.relu(self.conv(x) + x)


class Clamp(nn.Module):
    """What TAESD's decoder begins with."""

    def forward(self, x: Tensor) -> Tensor:
        """Keeps latents within 3, softly."""
        return torch.tanh(x / 3) * 3


def _conv(before: int, after: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, 1, bias=bias)


class Autoencoder(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] <-> latents (B, 4, H / 8, W / 8). Keys are those of TAESD's layers.

    Layers that TAESD has and these lists leave out are blocks, which pass non-negative features on if they are zeros.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        full, half, quarter, eighth = VAE.widths
        self.encoder = nn.ModuleDict({
            "0": _conv(3, full), "1": Block(full),
            "2": _conv(full, half, 2, False), "3": Block(half),
            "6": _conv(half, quarter, 2, False), "7": Block(quarter), "8": Block(quarter),
            "10": _conv(quarter, eighth, 2, False), "11": Block(eighth), "12": Block(eighth), "13": Block(eighth),
            "14": _conv(eighth, 4),
        })  # fmt: skip
        self.decoder = nn.ModuleDict({
            "0": Clamp(), "1": _conv(4, eighth), "2": nn.ReLU(),
            "3": Block(eighth), "4": Block(eighth), "5": Block(eighth),
            "6": nn.Upsample(scale_factor=2), "7": _conv(eighth, quarter, bias=False),
            "8": Block(quarter), "9": Block(quarter),
            "11": nn.Upsample(scale_factor=2), "12": _conv(quarter, half, bias=False),
            "13": Block(half), "14": Block(half),
            "16": nn.Upsample(scale_factor=2), "17": _conv(half, full, bias=False), "18": Block(full),
            "19": _conv(full, 3),
        })  # fmt: skip
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("deviation", torch.ones(4))

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents of mean 0 and standard deviation 1, about."""
        for layer in self.encoder.values():
            pictures = layer(pictures)
        return (pictures.float() - self.mean[:, None, None]) / self.deviation[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures, not clamped."""
        for layer in self.decoder.values():
            latents = layer(latents)
        return latents
