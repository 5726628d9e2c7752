"""The demo models on the host: text, codec and sampling by stock means, and RefDrop's effect on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sample
import numpy as np
import pytest
import torch
from PIL import Image
from refattention.nodes.refdrop import RefDropApply
from refattention_demo import configs
from refattention_demo.families import FAMILIES, SD15, SDXL
from refattention_demo.loading import load

PHOTO = Path(__file__).parents[2] / "workflows" / "pictures" / "refattention_photo.jpg"


@pytest.fixture(scope="module", params=list(FAMILIES))
def models(request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
    return load(request.param)


@pytest.fixture(autouse=True)
def inference() -> Any:
    """Nodes run in this mode."""
    with torch.inference_mode():
        yield


def photo() -> torch.Tensor:
    """(1, H, W, 3) in [0, 1], cropped to whole cells of the codec."""
    pixels = torch.from_numpy(np.array(Image.open(PHOTO).convert("RGB"))).float()[None] / 255
    return pixels[:, : pixels.shape[1] // 8 * 8, : pixels.shape[2] // 8 * 8]


def prompt(clip: Any, text: str) -> Any:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def sample(models: tuple[Any, Any, Any], size: tuple[int, int], steps: int, seed: int = 0) -> torch.Tensor:
    model, clip, _ = models
    latent = torch.zeros(1, 4, *size)
    noise = comfy.sample.prepare_noise(latent, seed)
    positive, negative = prompt(clip, "a cat"), prompt(clip, "")
    return comfy.sample.sample(
        model, noise, steps, 4.0, "euler", "normal", positive, negative, latent, disable_pbar=True
    )


def test_prompts_differ(models: tuple[Any, Any, Any]) -> None:
    _, clip, _ = models
    (cat, _), (dog, _) = (prompt(clip, text)[0] for text in ("a cat", "a dog"))
    assert cat.isfinite().all()
    assert not torch.allclose(cat, dog, atol=0.01)


def test_the_host_splits_heads_as_the_weights_mean_it(models: tuple[Any, Any, Any]) -> None:
    unet, config = models[0].model.diffusion_model, models[0].model.model_config
    size, count = {configs.DemoSD15: (SD15.unet, 16), configs.DemoSDXL: (SDXL.unet, 70)}[type(config)]
    attentions = [module for name, module in unet.named_modules() if name.endswith(".attn1")]
    assert len(attentions) == count
    assert all(module.heads == size.heads(module.to_q.out_features) for module in attentions)


@pytest.mark.parametrize("size", [(32, 32), (33, 25)])
def test_sampling_ends_in_a_picture(models: tuple[Any, Any, Any], size: tuple[int, int]) -> None:
    model, _, vae = models
    latent = sample(models, size, steps=4)
    inside = model.model.process_latent_in(latent)
    assert latent.shape == (1, 4, *size)
    assert inside.isfinite().all()
    assert 0.05 < inside.std() < 3
    pixels = vae.decode(latent)
    assert pixels.shape == (1, size[0] * 8, size[1] * 8, 3)
    assert pixels.std(dim=(1, 2)).max() > 0.01


def test_codec_keeps_flat_colours(models: tuple[Any, Any, Any]) -> None:
    _, _, vae = models
    for colour in ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.2, 0.5, 0.9]):
        picture = torch.tensor(colour).expand(1, 72, 56, 3)
        assert (vae.decode(vae.encode(picture)) - picture).abs().max() < 2 / 255


def test_codec_keeps_the_photograph_at_an_eighth(models: tuple[Any, Any, Any]) -> None:
    model, _, vae = models
    pixels = photo()
    latent = vae.encode(pixels)
    decoded = vae.decode(latent)
    assert (decoded - pixels).abs().mean() < 0.05
    coarse, coarse_decoded = (cells(picture) for picture in (pixels, decoded))
    assert (coarse - coarse_decoded).abs().mean() < 0.02
    assert 0.2 < model.model.process_latent_in(latent).std() < 2


def cells(picture: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(picture.movedim(-1, 1), 8)


def test_copies_of_the_model_can_be_made(models: tuple[Any, Any, Any]) -> None:
    """As the host does it for a second device."""
    model = models[0]
    factory, arguments = model.cached_patcher_init
    copy = factory(*arguments, disable_dynamic=True)
    tensors, copied = (patcher.model.diffusion_model.state_dict() for patcher in (model, copy))
    assert tensors.keys() == copied.keys()
    assert all(torch.equal(tensor, copied[name]) for name, tensor in tensors.items())


def test_refdrop_brings_the_colours_of_the_reference(models: tuple[Any, Any, Any]) -> None:
    """The more strength, the nearer are the colours to those of the photograph, on average over a few seeds."""
    model, clip, vae = models
    reference = {"samples": vae.encode(photo()[:, :128, 100:228])}
    colour = model.model.process_latent_in(reference["samples"]).mean((2, 3))
    distances = []
    for strength in (-0.3, 0.0, 0.3, 0.6):
        patched, *_ = RefDropApply.execute(
            model, strength, "all", "rfg", "", 0.0, 1.0, 0, 1, reference_latent=reference
        )
        latents = [sample((patched, clip, vae), (16, 16), 8, seed) for seed in range(3)]
        found = model.model.process_latent_in(torch.cat(latents)).mean((2, 3))
        distances.append((found - colour).norm(dim=1).mean().item())
    assert distances == sorted(distances, reverse=True), distances
    assert distances[-1] < 0.9 * distances[1], distances
