"""What the tests of Refine-by-Align's trained back end have in common: a tiny base, a codec, adapters, coloured blocks.

As a program it loads an adapter, paints with it, and prints the result: what a fresh process makes of a file.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from typing import Any

import bootstrap

if __name__ == "__main__":
    bootstrap.name_packages()
    bootstrap.prepare_host(exact=True)

import comfy.model_sampling
import torch
from encoders import encoder
from families import UNET, TinyFamily, random_model
from refattention.core.models.base import fingerprint
from refattention.core.models.vision import PatchEncoder
from refattention.core.patches.unet import family
from refattention.core.refine_by_align.adapter import Origin, TrainedAdapter, new_network, trained_weights
from refattention.core.refine_by_align.files import load_adapter
from refattention.core.refine_by_align.training import Example
from refattention.nodes.refine_by_align_stages import RefineRegion
from torch import Tensor
from torch.nn import functional as F

VISION_WIDTH, IMAGE_SIZE = 32, 28  # of the tests' DINOv2
CONTEXT_WIDTH = 24
CELL, SIDE, BLOCK = 8, 12, 4  # pixels of a latent, latents along a picture, latents along a block
ONE_LEVEL = {"channel_mult": (1,), "num_res_blocks": [1], "transformer_depth": [1], "transformer_depth_output": [1, 1]}
ALIGN = {"timesteps": "261", "layers": "", "threshold": 0.0, "margin": 0.1, "minimum_contrast": 0.0}
PAINT = {
    "strength": 1.0,
    "steps": 2,
    "cfg": 3.0,
    "denoise": 1.0,
    "sampler_name": "euler",
    "scheduler": "normal",
    "feather": 4,
    "areas": "one by one",
}


class Codec:
    """A VAE that averages cells; its latents are as large as a real one's."""

    def encode(self, pixels: Tensor) -> Tensor:
        cells = F.avg_pool2d(pixels[..., :3].movedim(-1, 1), CELL) * 2 - 1
        return torch.cat([cells, cells.mean(1, keepdim=True)], 1) / 0.18215

    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents[:, :3] * 0.18215 / 2 + 0.5, scale_factor=CELL).movedim(1, -1)


class PredictsPicture(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.X0):
    """Ten noise levels, sigma 0.5 to 4, of a model that predicts the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.set_sigmas((torch.logspace(-0.3, 0.6, 10)).float())


@functools.cache
def _base(channels: int) -> Any:
    config = {**UNET, **ONE_LEVEL, "in_channels": channels, "context_dim": CONTEXT_WIDTH, "num_classes": None}
    return random_model(TinyFamily("SD15", config, (4, SIDE, SIDE)))


def base(inpainting: bool = False) -> Any:
    """A clone of a tiny SD1.5 with random weights, which takes mask and masked picture if `inpainting`."""
    return _base(9 if inpainting else 4).clone()


def prompt(seed: int) -> list[Any]:
    """A text of the width of the tiny base."""
    return [[torch.randn(1, 5, CONTEXT_WIDTH, generator=torch.Generator().manual_seed(seed)), {}]]


def vision() -> Any:
    """A CLIP_VISION: DINOv2 of 4 x 4 patches."""
    return encoder("dino2")


def encoded(picture: Tensor) -> Tensor:
    """The same encoder's patches of a picture (1, H, W, 3)."""
    patches = PatchEncoder(vision(), -1)
    return patches.features(picture[0], patches.layout(*picture.shape[1:3]))


def adapter(patcher: Any = None, seed: int = 1) -> TrainedAdapter:
    """An adapter for a base, with random cross-attentions."""
    patcher = patcher or base()
    unet = patcher.model.diffusion_model.state_dict()
    generator = torch.Generator().manual_seed(seed)
    other = {name: weight + 0.3 * torch.randn(weight.shape, generator=generator) for name, weight in unet.items()}
    weights = trained_weights(new_network(patcher, VISION_WIDTH, seed), other, patcher)
    return TrainedAdapter(weights, origin(patcher))


def origin(patcher: Any, image_size: int = IMAGE_SIZE) -> Origin:
    """Where an adapter of a base comes from."""
    return Origin(family(patcher), fingerprint(patcher), VISION_WIDTH, image_size, {"steps": 40})


def example(seed: int) -> Example:
    """A bright object of a colour of its own somewhere on a dark ground, and the same somewhere on another ground."""
    generator = torch.Generator().manual_seed(seed)
    blocks = SIDE // BLOCK
    colour = 0.5 + 0.5 * torch.rand(3, generator=generator)
    shown = []
    for _ in range(2):
        picture = (0.4 * torch.rand(3, generator=generator)).expand(blocks, blocks, 3).clone()
        place = torch.zeros(blocks, blocks)
        row, column = torch.randint(blocks, (2,), generator=generator).tolist()
        picture[row, column], place[row, column] = colour, 1.0
        shown += [enlarged(picture).unsqueeze(0), enlarged(place)]
    return Example(*shown)


def enlarged(blocks: Tensor) -> Tensor:
    """Blocks as pixels."""
    return blocks.repeat_interleave(BLOCK * CELL, 0).repeat_interleave(BLOCK * CELL, 1)


def painted(trained: TrainedAdapter) -> Tensor:
    """What Refine Region paints with an adapter."""
    one = example(5)
    inputs = {"strength": 1.0, "seed": 3, "steps": 2, "cfg": 3.0, "denoise": 1.0, "sampler_name": "euler"}
    work = {"scheduler": "normal", "context": 0.3, "working_size": 128, "feather": 4, "areas": "one by one"}
    with torch.inference_mode():
        node = RefineRegion.execute(
            base(), Codec(), prompt(1), prompt(2), one.picture, one.mask[None], one.reference, **inputs, **work,
            adapter=trained, clip_vision=vision(),
        )  # fmt: skip
    return node[0]


def digest(tensor: Tensor) -> str:
    """Equal just when every bit is."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    print(digest(painted(load_adapter(sys.argv[1]))))
