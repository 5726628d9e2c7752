"""Patch features of the host's own encoder classes, in small sizes with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from encoders import CONFIGS, encoder
from refattention.core.models.vision import FITS, READERS, RESOLUTIONS, PatchEncoder


@pytest.fixture(params=list(CONFIGS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def picture(height: int = 40, width: int = 61) -> torch.Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(height))


@torch.inference_mode()
def features(vision: Any, image: torch.Tensor, layer: int = -2, **choices: str) -> torch.Tensor:
    patches = PatchEncoder(vision, layer, **choices)
    return patches.features(image, patches.layout(*image.shape[:2]))


@pytest.mark.parametrize("kind", ["clip", "siglip", "dino2"])
def test_default_is_what_the_host_calls_penultimate(kind: str) -> None:
    vision, image = encoder(kind), picture()
    with torch.inference_mode():
        tokens = vision.encode_image(image[None], crop=False).penultimate_hidden_states
    assert torch.allclose(features(vision, image), tokens[0, tokens.shape[1] - 16 :].unflatten(0, (4, 4)), atol=1e-5)


def test_every_layer_by_both_numbers(kind: str) -> None:
    vision, image = encoder(kind), picture()
    layers = [features(vision, image, layer) for layer in range(4)]
    for layer in range(4):
        assert torch.equal(features(vision, image, layer - 4), layers[layer])
        assert layer == 0 or not torch.allclose(layers[layer], layers[layer - 1])


def test_no_block_after_the_layer_is_run(kind: str) -> None:
    vision, image = encoder(kind), picture()
    whole = features(vision, image, 1)
    list_blocks, _ = READERS[type(vision.model)]
    for block in list_blocks(vision.model)[2:]:
        block.forward = None
    assert torch.equal(features(vision, image, 1), whole)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("resolution", ["native", "1.5x", "4x"])
def test_every_fit_and_resolution(kind: str, fit: str, resolution: str) -> None:
    side = round(4 * RESOLUTIONS[resolution])
    found = features(encoder(kind), picture(30, 62), fit=fit, resolution=resolution)
    assert found.shape[:2] == {"stretch": (side, side), "pad": (-(-(side * 7 * 30 // 62) // 7), side),
                               "tiles": (side, round(side * 62 / 30))}[fit]  # fmt: skip
    assert found.isfinite().all()


def test_a_patch_sees_its_own_place(kind: str) -> None:
    """A change in one corner of the picture changes its patches most, at every resolution."""
    vision, image = encoder(kind), picture(56, 56)
    changed = image.clone()
    changed[-7:, :7] = 1 - changed[-7:, :7]
    for resolution in RESOLUTIONS:
        before, after = (features(vision, each, 0, resolution=resolution) for each in (image, changed))
        difference = (after - before).norm(dim=-1)
        row, column = divmod(int(difference.argmax()), difference.shape[1])
        assert row >= len(difference) * 7 / 8 - 1 and column < max(1, difference.shape[1] / 8)


def test_the_host_s_encoder_is_left_as_it_was(kind: str) -> None:
    vision = encoder(kind)
    before = {name: tensor.clone() for name, tensor in vision.model.state_dict().items()}
    features(vision, picture(), resolution="2x")
    assert all(torch.equal(before[name], tensor) for name, tensor in vision.model.state_dict().items())


@pytest.mark.parametrize("layer", [4, -5])
def test_layer_that_does_not_exist(kind: str, layer: int) -> None:
    with pytest.raises(ValueError, match=f"layer is {layer}, but this encoder has 4 layers: 0 to 3, or -4 to -1"):
        PatchEncoder(encoder(kind), layer)


def test_encoder_of_another_kind() -> None:
    vision = encoder("clip")
    vision.model = torch.nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match="clip_vision is a Linear, which gives no patch tokens"):
        PatchEncoder(vision, -2)


def test_encoder_with_pooled_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    vision = encoder("clip")
    last = vision.model.vision_model.encoder.layers[-2]
    whole = last.forward
    monkeypatch.setattr(last, "forward", lambda *args: whole(*args)[:, :1])
    with pytest.raises(RuntimeError, match="gives 1 tokens for a picture of 4 x 4 patches"):
        features(vision, picture())
