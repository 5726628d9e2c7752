"""What the tests of P3S have in common: inputs, a codec, an encoder, adapters with something in them.

As a program it loads an adapter, samples with it, and prints the result: what a fresh process makes of a file.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import bootstrap

if __name__ == "__main__":
    bootstrap.name_packages()
    bootstrap.prepare_host(exact=True)

import torch
from refattention.core.models.base import fingerprint
from refattention.core.p3s.adapter import Origin, TrainedAdapter, trainable, trained_weights
from refattention.core.p3s.files import load_adapter, save_adapter
from refattention.core.patches.unet import family as unet_family
from refattention.nodes.p3s import P3SInject
from refattention_demo import vision
from refattention_demo.loading import load
from sampling import latent, model, prompt, sample
from torch import Tensor

VISION_WIDTH = 24
IMAGE = torch.rand(1, 72, 88, 3, generator=torch.Generator().manual_seed(1))
WIDGETS = {
    "strength": 1.0,
    "schedule": "paper",
    "value_strength": 0.2,
    "alpha": 0.5,
    "beta": 0.2,
    "exponent": 2.0,
    "start_percent": 0.0,
    "end_percent": 1.0,
    "reference_seed": 0,
}


class Codec:
    """Stands in for a VAE: 8 x 8 pixels become one, three colours four channels."""

    def encode(self, pixels: Tensor) -> Tensor:
        assert pixels.shape[-1] == 3
        colours = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return torch.cat([colours, colours.mean(1, keepdim=True)], dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        return latents[:, :3].movedim(1, -1)


class Eye:
    """Stands in for a vision encoder: tokens of a width, made of the picture's mean colour."""

    def __init__(self, width: int = VISION_WIDTH) -> None:
        self.width = width

    def encode_image(self, images: Tensor, crop: bool) -> dict[str, Tensor]:
        assert images.shape[-1] == 3 and not crop
        colours = images.mean((1, 2)).unsqueeze(1)
        return {"last_hidden_state": colours.repeat(1, 5, self.width // 3) * torch.linspace(0.5, 1.5, 5)[:, None]}


def adapter(family: str = "sd15", zeros: bool = False) -> TrainedAdapter:
    """An adapter for a family's model; unless `zeros`, its zero convolutions hold something."""
    patcher = model(family)
    network = trainable(patcher, VISION_WIDTH, seed=0)
    if not zeros:
        fill_zeros(network)
    name = type(patcher.model.model_config).__name__
    origin = Origin(name, fingerprint(patcher), VISION_WIDTH, "sks", "dog", "a photo of sks dog", {"epochs": 60})
    return TrainedAdapter(trained_weights(network, patcher), origin)


def write_p3s_adapter(path: Path) -> None:
    """Writes an untrained one that fits the demo's SD1.5 model and vision encoder."""
    patcher, *_ = load("sd15")
    origin = Origin(unet_family(patcher), fingerprint(patcher), vision.WIDTH, "sks", "cup", "a photo of sks cup", {})
    path.parent.mkdir(exist_ok=True)
    save_adapter(TrainedAdapter(trained_weights(trainable(patcher, vision.WIDTH, seed=0), patcher), origin), path)


class Clip:
    """Stands in for a text encoder of SD1.5: noise for every text, by its length."""

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list[Any]:
        return prompt("sd15", len(text))


def fill_zeros(network: torch.nn.Module) -> None:
    """Gives the zero convolutions weights."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in network.state_dict().items():
        if "zero" in name:
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5 * weight.shape[0] ** -0.5)


def inject(patcher: Any, **inputs: Any) -> Any:
    """What P3SInject makes of a model."""
    given = {"reference_image": IMAGE, "vae": Codec(), "clip_vision": Eye(), **WIDGETS, **inputs}
    return P3SInject.execute(patcher, **given)[0]


def picture(patcher: Any) -> Tensor:
    """A short run on SD1.5."""
    # Three steps: at t / T = 1 and 0 alone, the exponent of the schedule would not show.
    return sample(patcher, latent(1, 4, 16, 12), prompt("sd15", 1), prompt("sd15", 2), steps=3)


def digest(tensor: Tensor) -> str:
    """Equal just when every bit is."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    print(digest(picture(inject(model("sd15"), adapter=load_adapter(sys.argv[1])))))
