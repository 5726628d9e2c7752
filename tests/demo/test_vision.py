"""The demo's vision encoder: recognised as CLIP ViT-L/14, and near in features just where colours are near."""

from __future__ import annotations

from typing import Any

import comfy.clip_vision
import pytest
import torch
from refattention.core.models.vision import PatchEncoder
from refattention_demo import vision


@pytest.fixture(scope="module")
def encoder() -> Any:
    return comfy.clip_vision.load_clipvision_from_sd(vision.state_dict())


def test_it_has_exactly_the_tensors_of_the_real_one(encoder: Any) -> None:
    real = {name: tensor.shape for name, tensor in encoder.model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in vision.state_dict().items()} == real
    assert len(encoder.model.vision_model.encoder.layers) == 24


@torch.inference_mode()
def test_features_follow_colours(encoder: Any) -> None:
    colours = torch.tensor([[0.2, 0.3, 0.8], [0.25, 0.33, 0.75], [0.2, 0.7, 0.3], [0.6, 0.4, 0.2]])
    image = colours.repeat_interleave(20, 0).expand(80, -1, -1)
    patches = PatchEncoder(encoder, -2)
    row = torch.nn.functional.normalize(patches.features(image, patches.layout(80, 80))[8], dim=-1)
    blue, other_blue, green, brown = row[[1, 5, 9, 13]]
    assert blue @ other_blue > 0.55
    assert max(blue @ green, blue @ brown, green @ brown) < 0.3
