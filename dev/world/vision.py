"""A narrow vision transformer that lies exactly inside CLIP ViT-L/14: its patches, heads of 64, norms over 1024."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIDE, PATCH = 16, 14
SIZE = SIDE * PATCH
WIDTH, HEADS, LAYERS = 128, 2, 3
# Of the real one; the features that this one does not have are zeros there, and count in its norms.
FULL_WIDTH = 1024
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
DEVIATION = torch.tensor([0.26862954, 0.26130258, 0.27577711])


class Norm(nn.Module):
    """A layer norm over 1024 features of which only the first are not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((WIDTH,), (WIDTH / FULL_WIDTH) ** 0.5))
        self.bias = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> the same."""
        x = x.float()
        mean = x.sum(-1, keepdim=True) / FULL_WIDTH
        variance = x.square().sum(-1, keepdim=True) / FULL_WIDTH - mean.square()
        return (x - mean) * (variance + 1e-5).rsqrt() * self.weight + self.bias


class Block(nn.Module):
    """A layer of the encoder, with the host's names."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = Norm(), Norm()
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.self_attn = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in names})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, 4 * WIDTH), "fc2": nn.Linear(4 * WIDTH, WIDTH)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> the same."""
        normed = self.layer_norm1(x)
        q, k, v = (
            self.self_attn[name](normed).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + self.self_attn["out_proj"]((weights @ v).transpose(1, 2).flatten(2))
        hidden = self.mlp["fc1"](self.layer_norm2(x))
        return x + self.mlp["fc2"](hidden * torch.sigmoid(1.702 * hidden))


class VisionEncoder(nn.Module):
    """Pictures (B, 3, 224, 224) in [0, 1] -> features of the patches, (B, 256, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(WIDTH))
        self.patch_embedding = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.position_embedding = nn.Parameter(0.3 * torch.randn(SIDE**2 + 1, WIDTH))
        self.pre_layrnorm = Norm()
        self.layers = nn.ModuleList([Block() for _ in range(LAYERS)])

    def forward(self, pictures: Tensor) -> Tensor:
        """The hidden states after the last trained layer, without the class token's."""
        return self.read((pictures - MEAN[:, None, None]) / DEVIATION[:, None, None])

    def read(self, normalised: Tensor) -> Tensor:
        """The same of pictures whose channels have mean 0 and deviation 1."""
        patches = self.patch_embedding(normalised).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], 1) + self.position_embedding
        x = self.pre_layrnorm(x)
        for layer in self.layers:
            x = layer(x)
        return x[:, 1:]
