"""P3SInject: what the widgets become, and what wrong input is told."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import tiny_model
from p3s_support import WIDGETS, Codec, picture
from refattention.nodes.p3s import P3SInject
from sampling import distance, latent, model

REFERENCE = {"samples": latent(1, 4, 9, 11, seed=3)}


def apply(**inputs: Any) -> Any:
    return P3SInject.execute(model("sd15"), **{**WIDGETS, **inputs})[0]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "P3S Inject got no reference. Connect reference_image and vae, or reference_latent"),
        ({"reference_image": torch.rand(1, 72, 88, 3)}, "reference_image is connected, but vae is not"),
        (
            {"reference_image": torch.rand(1, 72, 88, 3), "reference_latent": REFERENCE},
            "got both reference_image and reference_latent",
        ),
        (
            {"reference_latent": {"samples": latent(1, 16, 9, 9)}},
            r"shape \(1, 16, 9, 9\), but this DemoSD15.*\(batch, 4,",
        ),
        ({"reference_latent": {"samples": latent(2, 4, 9, 9)}}, "a batch of 2 pictures, but P3S Inject takes one"),
        ({"reference_image": torch.rand(2, 72, 88, 3), "vae": Codec()}, "reference_image holds 2 pictures, but one"),
        ({"reference_latent": REFERENCE, "mask": torch.zeros(1, 8, 8)}, "^mask is all black"),
        ({"reference_latent": REFERENCE, "subject_mask": torch.zeros(1, 8, 8)}, "subject_mask is all black"),
        ({"reference_latent": REFERENCE, "subject_mask": torch.ones(2, 8, 8)}, "subject_mask holds 2 masks for one"),
        ({"reference_latent": REFERENCE, "mask": torch.ones(2, 8, 8)}, "mask holds 2 masks, but P3S Inject takes one"),
        ({"reference_latent": REFERENCE, "negative": "empty reference"}, "only an adapter can read one"),
        ({"reference_latent": REFERENCE, "schedule": "learned"}, "a model without an adapter has no weight that was"),
        ({"reference_latent": REFERENCE, "noise_bias": math.inf}, "noise_bias must be a number, but is inf"),
        (
            {"reference_latent": REFERENCE, "strength": math.nan},
            "strength must be a number between 0 and 2, but is nan",
        ),
        (
            {"reference_latent": REFERENCE, "start_percent": 0.6, "end_percent": 0.4},
            r"start_percent \(0.6\) must not be larger than end_percent \(0.4\)",
        ),
    ],
)
def test_wrong_input(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply(**inputs)


def test_what_a_vae_of_videos_makes_of_a_batch_is_no_subject() -> None:
    with pytest.raises(ValueError, match="The reference is a video of 2 latents, but P3S Inject takes one picture"):
        P3SInject.execute(tiny_model("qwen"), **WIDGETS, reference_latent={"samples": latent(1, 16, 2, 8, 12)})


def test_a_picture_smaller_than_a_latent_is_filled_up() -> None:
    """ComfyUI's VAEs crop to whole latents, of 16 pixels in Flux 2."""
    seen = []

    class Watched:
        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(pixels.shape))
            return latent(1, 128, 1, 2)

    P3SInject.execute(tiny_model("flux2"), **WIDGETS, reference_image=torch.rand(1, 9, 20, 3), vae=Watched())
    assert seen == [(1, 16, 32, 3)]


def test_two_nodes_inject_two_subjects() -> None:
    other = {"samples": latent(1, 4, 9, 11, seed=4)}
    one, both = apply(reference_latent=REFERENCE), apply(reference_latent=REFERENCE)
    both = P3SInject.execute(both, **WIDGETS, reference_latent=other, mask=torch.eye(9))[0]
    assert distance(picture(both), picture(one)) > 1e-4
    off = P3SInject.execute(one, **{**WIDGETS, "strength": 0.0}, reference_latent=other)[0]
    assert torch.equal(picture(off), picture(one))


def test_another_architecture_is_named() -> None:
    other = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Identity()))
    with pytest.raises(RuntimeError, match="P3S Inject cannot patch the attention of a SimpleNamespace model"):
        P3SInject.execute(other, **WIDGETS, reference_latent=REFERENCE)


def test_strength_0_does_not_patch_at_all() -> None:
    for off in ({"strength": 0.0}, {"schedule": "off"}):
        patched = apply(reference_latent=REFERENCE, **off)
        assert not patched.wrappers
        assert patched.model_options == model("sd15").model_options


def test_a_picture_is_what_the_vae_makes_of_it() -> None:
    image = torch.rand(1, 72, 88, 4, generator=torch.Generator().manual_seed(1))
    encoded = {"samples": Codec().encode(image[..., :3])}
    got = picture(apply(reference_image=image, vae=Codec()))
    assert torch.equal(got, picture(apply(reference_latent=encoded)))


def test_each_widget_has_its_effect() -> None:
    """Every setting changes the picture, and each in its own way."""
    variants = [
        {},
        {"strength": 0.5},
        {"schedule": "fixed"},
        {"schedule": "increasing"},
        {"schedule": "decreasing"},
        {"value_strength": 0.6},
        {"alpha": 0.3},
        {"beta": 0.4},
        {"exponent": 4.0},
        {"start_percent": 0.4},
        {"end_percent": 0.4},
        {"reference_seed": 1},
        {"subject_mask": torch.eye(9)},
        {"mask": torch.eye(9)},
        {"negative": "no injection"},
        {"noise_bias": 0.1},
    ]
    pictures = [picture(apply(reference_latent=REFERENCE, **variant)) for variant in variants]
    pictures.append(picture(model("sd15")))
    for i, one in enumerate(pictures):
        for other in pictures[i + 1 :]:
            assert (one - other).abs().max() > 1e-4
