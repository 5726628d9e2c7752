"""RefDrop Record: KSampler's picture and a recording, from a latent or a finished picture."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import pytest
import torch
from families import tiny_latent, tiny_model, tiny_prompt
from refattention.nodes.refdrop import RefDropApply
from refattention.nodes.refdrop_record import RefDropRecord
from sampling import sample

WIDGETS = {
    "seed": 5,
    "steps": 3,
    "cfg": 1.0,
    "sampler_name": "euler",
    "scheduler": "normal",
    "denoise": 1.0,
    "blocks": "all",
    "custom_blocks": "",
    "batch_references": 1,
}
PROMPTS = {"positive": tiny_prompt("flux", 1), "negative": tiny_prompt("flux", 2)}
APPLY = {
    **{"strength": 0.4, "blocks": "all", "mode": "rfg", "custom_blocks": "", "start_percent": 0.0, "end_percent": 1.0},
    **{"reference_seed": 5, "batch_references": 1},
}


def record(**inputs: Any) -> tuple[dict[str, Any], Any]:
    return tuple(RefDropRecord.execute(tiny_model("flux"), **{**WIDGETS, **PROMPTS, **inputs}).result)


def picture(**inputs: Any) -> torch.Tensor:
    patched = RefDropApply.execute(tiny_model("flux"), **APPLY, **inputs)[0]
    return sample(patched, tiny_latent("flux"), tiny_prompt("flux", 8), tiny_prompt("flux", 2), cfg=1.0)


def test_samples_as_ksampler_does() -> None:
    """An empty latent may have another model's channels."""
    latent = {"samples": torch.zeros(2, 4, 8, 12), "batch_index": [0, 2], "downscale_ratio_spacial": 8}
    painted, _ = record(latent_image=latent)
    noise = torch.randn(3, 16, 8, 12, generator=torch.Generator().manual_seed(5))[[0, 2]]
    assert torch.equal(painted["samples"], sample(tiny_model("flux"), noise, **PROMPTS, cfg=1.0, seed=5))
    assert painted.keys() == {"samples", "batch_index"}


def test_a_finished_picture_is_recorded_as_it_is_passed() -> None:
    latent = {"samples": tiny_latent("flux", seed=3)}
    painted, cache = record(reference_latent=latent)
    assert painted is latent
    assert torch.equal(picture(cache=cache), picture(reference_latent=latent, reference_positive=PROMPTS["positive"]))


def test_noise_levels_can_be_given() -> None:
    latent = {"samples": torch.zeros(1, 16, 8, 12)}
    sigmas = comfy.samplers.calculate_sigmas(tiny_model("flux").get_model_object("model_sampling"), "normal", 3)
    want, cache = record(latent_image=latent, steps=9, sigmas=sigmas)
    assert torch.equal(want["samples"], record(latent_image=latent)[0]["samples"])
    assert torch.isfinite(picture(cache=cache)).all()


@pytest.mark.parametrize("sigmas", [[], [1.0]])
def test_without_a_step_there_is_no_recording(sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match="RefDrop Record had no step to record"):
        record(latent_image={"samples": torch.zeros(1, 16, 8, 12)}, sigmas=torch.tensor(sigmas))


def test_float16_and_fewer_blocks_take_less_memory() -> None:
    latent = {"samples": torch.zeros(1, 16, 8, 12)}
    whole, half, one = (
        record(latent_image=latent, **inputs)[1].size
        for inputs in ({}, {"cache_precision": "float16"}, {"blocks": "custom", "custom_blocks": "double.1"})
    )
    assert (half * 2, one * 4) == (whole, whole)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "RefDrop Record needs either latent_image.*but neither is connected"),
        ({"latent_image": {"samples": None}, "reference_latent": {"samples": None}}, "but both are connected"),
        ({"reference_latent": {"samples": torch.zeros(1, 4, 8, 8)}}, r"reference_latent has the shape \(1, 4, 8, 8\)"),
        ({"latent_image": {"samples": torch.zeros(1, 16, 8, 8)}, "batch_references": 2}, "batch_references is 2, but"),
        (
            {"latent_image": {"samples": torch.zeros(1, 16, 64, 64)}, "cache_mib": 1},
            r"RefDrop Record needs about 6 MiB for this run, but cache_mib is 1\.",
        ),
    ],
)
def test_wrong_input(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record(**inputs)


def test_what_a_vae_of_videos_makes_of_a_batch_is_no_picture_to_record() -> None:
    frames = {"samples": torch.ones(1, 16, 2, 8, 12)}
    prompts = {name: tiny_prompt("qwen", 1) for name in PROMPTS}
    with pytest.raises(ValueError, match="RefDrop Record: reference_latent is a video of 2 latents"):
        RefDropRecord.execute(tiny_model("qwen"), **WIDGETS, **prompts, reference_latent=frames)


def test_apply_has_one_source_of_references() -> None:
    latent = {"samples": torch.ones(1, 16, 8, 12)}
    _, cache = record(latent_image=latent)
    with pytest.raises(ValueError, match="cache is connected beside reference_latent"):
        picture(cache=cache, reference_latent=latent)
    with pytest.raises(ValueError, match=r"add up to 1\.2, but the sum must lie"):
        RefDropApply.execute(picture_model(cache), **{**APPLY, "strength": 0.8}, cache=cache)


def picture_model(cache: Any) -> Any:
    return RefDropApply.execute(tiny_model("flux"), **APPLY, cache=cache)[0]
