"""RefDrop: what the widgets become, and what wrong input is told."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from comfy.nested_tensor import NestedTensor
from families import VIDEO, tiny_latent, tiny_model, tiny_prompt
from refattention.nodes.refdrop import RefDropApply, RefDropVideo
from sampling import distance, latent, model, prompt, sample

WIDGETS = {
    "strength": 0.3,
    "blocks": "skip first output block",
    "mode": "rfg",
    "custom_blocks": "",
    "start_percent": 0.0,
    "end_percent": 1.0,
    "reference_seed": 0,
    "batch_references": 1,
}


def apply(patcher: Any, **inputs: Any) -> Any:
    return RefDropApply.execute(patcher, **{**WIDGETS, **inputs})[0]


def video(patcher: Any, **inputs: Any) -> Any:
    unused = ("mode", "batch_references")
    widgets = {**WIDGETS, "strength": 0.2, **inputs}
    return RefDropVideo.execute(patcher, **{name: value for name, value in widgets.items() if name not in unused})[0]


def reference(*shape: int) -> dict[str, Any]:
    return {"samples": latent(*(shape or (1, 4, 9, 11)))}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"strength": math.nan}, "strength must be a number between -1 and 1, but is nan"),
        ({"strength": 1.5}, "strength must be a number between -1 and 1, but is 1.5"),
        (
            {"start_percent": 0.6, "end_percent": 0.4},
            r"start_percent \(0.6\) must not be larger than end_percent \(0.4\)",
        ),
        (
            {"blocks": "custom", "custom_blocks": "output.99"},
            "names 'output.99', which has no self-attention in this DemoSD15 model",
        ),
        ({"blocks": "custom"}, "custom_blocks is empty.*input.1, input.2"),
        (
            {"reference_latent": reference(1, 16, 9, 11)},
            r"reference_latent has the shape \(1, 16, 9, 11\).*needs \(batch, 4,",
        ),
        ({"reference_latent": reference(1, 4, 3, 9, 11)}, r"reference_latent has the shape \(1, 4, 3, 9, 11\)"),
        ({"reference_latent": reference(0, 4, 9, 11)}, r"reference_latent has the shape \(0, 4, 9, 11\)"),
        ({"reference_latent": {"samples": latent(1, 4, 9, 11) / 0}}, "reference_latent holds NaN or infinity"),
        (
            {"reference_latent": {"samples": NestedTensor([latent(1, 4, 9, 11), latent(1, 8, 5)])}},
            "reference_latent is a video together with its sound",
        ),
        (
            {"reference_latent": {"samples": torch.zeros(1, 4, 8, 8)}},
            "reference_latent is an empty latent, which shows",
        ),
        ({"reference_latent": reference(), "mask": torch.zeros(2, 8, 8)}, "^mask is all black, as Load Image gives it"),
        ({"reference_positive": prompt("sd15", 1)}, "reference_positive is connected, but reference_latent is not"),
        (
            {"reference_latent": reference(3, 4, 9, 9), "strength": 0.4},
            "add up to 1.2, but the sum must lie between -1 and 1",
        ),
        ({"reference_latent": reference(), "reference_mask": torch.zeros(1, 8, 8)}, "reference_mask is all black"),
        (
            {"reference_latent": reference(), "reference_mask": torch.ones(3, 8, 8)},
            "reference_mask holds 3 masks for 1 references",
        ),
        ({"batch_references": 4, "strength": -0.3}, "add up to -1.2"),
    ],
)
def test_wrong_input(inputs: dict[str, Any], message: str) -> None:
    # Latents that fit the stand-in model are 4 channels deep.
    with pytest.raises(ValueError, match=message):
        apply(model("sd15"), **inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {},
            "no reference: reference_latent is not connected, and with batch_references = 1 a batch of 1 leaves",
        ),
        ({"reference_latent": reference(), "mask": torch.ones(3, 8, 8)}, "mask holds 3 masks for a batch of 1"),
    ],
)
def test_wrong_input_that_only_sampling_can_see(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(apply(model("sd15"), **inputs), latent(1, 4, 16, 12), prompt("sd15", 1), prompt("sd15", 2))


def test_what_a_vae_of_videos_makes_of_a_batch_is_no_reference_for_a_picture() -> None:
    """The VAE of Qwen-Image takes a batch of pictures for the frames of one video."""
    frames = {"samples": latent(1, 16, 2, 8, 12)}
    patched = apply(tiny_model("qwen"), reference_latent=frames)
    prompts = tiny_prompt("qwen", 1), tiny_prompt("qwen", 2)
    with pytest.raises(ValueError, match=r"RefDrop: reference_latent is a video of 2 latents.* paints pictures"):
        sample(patched, latent(1, 16, 1, 8, 12), *prompts)
    layers = sample(patched, latent(1, 16, 3, 8, 12), *prompts, steps=1)  # what Qwen-Image-Layered paints
    assert layers.isfinite().all()


def test_transformers_take_the_same_widgets() -> None:
    patched = apply(tiny_model("flux"), reference_latent={"samples": tiny_latent("flux", seed=3)})
    prompts, noise = (tiny_prompt("flux", 1), tiny_prompt("flux", 2)), tiny_latent("flux")
    everywhere = sample(patched, noise, *prompts, cfg=1.0)
    single = apply(
        tiny_model("flux"),
        reference_latent={"samples": tiny_latent("flux", seed=3)},
        blocks="custom",
        custom_blocks="single.1, double",
    )
    assert (everywhere - sample(single, noise, *prompts, cfg=1.0)).abs().max() > 1e-4
    with pytest.raises(ValueError, match=r"names 'output', which.*double\.0, double\.1, single\.0, single\.1"):
        apply(tiny_model("flux"), blocks="custom", custom_blocks="output")


def test_a_picture_is_a_reference_for_a_model_of_videos() -> None:
    frame = tiny_latent("wan21", seed=3, frames=1)
    pictures = []
    prompts = tiny_prompt("wan21", 1), tiny_prompt("wan21", 2)
    for samples in (frame, frame.squeeze(2)):
        patched = video(tiny_model("wan21"), reference_latent={"samples": samples})
        pictures.append(sample(patched, tiny_latent("wan21"), *prompts, steps=1))
    assert torch.equal(*pictures)
    with pytest.raises(ValueError, match=r"has the shape \(1, 4, 9, 11\).*\(batch, 16, frames, height"):
        video(tiny_model("wan21"), reference_latent=reference())


@pytest.mark.parametrize("family", VIDEO)
def test_the_video_node_guides_by_the_first_frame(family: str) -> None:
    noise, prompts = tiny_latent(family), (tiny_prompt(family, 1), tiny_prompt(family, 2))
    by_first = sample(video(tiny_model(family)), noise, *prompts, steps=1)
    same = sample(apply(tiny_model(family), strength=0.2), noise, *prompts, steps=1)
    assert torch.equal(by_first, same)
    assert not torch.equal(by_first, sample(tiny_model(family), noise, *prompts, steps=1))


def test_the_video_node_refuses_models_of_pictures() -> None:
    with pytest.raises(RuntimeError, match="RefDrop Video needs a video model, but this is a DemoSD15 model"):
        video(model("sd15"))


def test_a_family_that_cannot_be_patched_is_named() -> None:
    patcher = tiny_model("flux")
    parts = {"diffusion_model": torch.nn.Linear(1, 1), "model_config": type("Aura", (), {})()}
    patcher.model = type("Model", (), parts)()
    with pytest.raises(RuntimeError, match=r"RefDrop Apply cannot patch the attention of a Aura model: it is of a"):
        apply(patcher)


def test_hooks_in_the_references_prompt_are_refused() -> None:
    text, options = prompt("sd15", 1)[0]
    with pytest.raises(ValueError, match="reference_positive carries hooks"):
        apply(model("sd15"), reference_latent=reference(), reference_positive=[[text, {**options, "hooks": object()}]])


def test_several_prompts_of_the_reference_at_a_time_are_refused() -> None:
    (text, options), (other, _) = prompt("sd15", 1)[0], prompt("sd15", 2)[0]
    in_turn = [[text, {**options, "end_percent": 0.5}], [other, {**options, "start_percent": 0.5}]]
    apply(model("sd15"), reference_latent=reference(), reference_positive=in_turn)
    with pytest.raises(ValueError, match="reference_positive holds 2 prompts for the same steps"):
        apply(model("sd15"), reference_latent=reference(), reference_positive=[*prompt("sd15", 1), *prompt("sd15", 2)])


def test_strengths_may_exceed_1_together_where_masks_or_ranges_keep_them_apart() -> None:
    left, right = torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
    left[..., :4], right[..., 4:] = 1, 1
    first = apply(model("sd15"), strength=0.8, reference_latent=reference(), mask=left)
    apply(first, strength=0.8, reference_latent=reference(), mask=right)
    with pytest.raises(ValueError, match=r"add up to 1\.6"):
        apply(first, strength=0.8, reference_latent=reference(), mask=left)

    first = apply(model("sd15"), strength=-0.8, reference_latent=reference(), end_percent=0.4)
    apply(first, strength=-0.8, reference_latent=reference(), start_percent=0.5)
    with pytest.raises(ValueError, match=r"add up to -1\.6"):
        apply(first, strength=-0.8, reference_latent=reference(), start_percent=0.3)

    first = apply(model("sd15"), strength=0.8, reference_latent=reference(), blocks="custom", custom_blocks="input")
    apply(first, strength=0.8, reference_latent=reference(), blocks="custom", custom_blocks="output")


def test_strength_0_does_not_patch_at_all() -> None:
    patched = apply(model("sd15"), strength=0.0, reference_latent=reference())
    assert not patched.wrappers
    assert patched.model_options == model("sd15").model_options


def test_the_second_picture_comes_from_the_cache() -> None:
    noise, prompts = latent(1, 4, 16, 12), (prompt("sd15", 1), prompt("sd15", 2))
    pictures = {}
    for precision in ("model", "float16"):
        patched = apply(model("sd15"), reference_latent=reference(), cache_precision=precision)
        first = sample(patched, noise, *prompts)
        pictures[precision] = sample(patched, noise, *prompts)
        assert torch.equal(pictures[precision], first)  # rounded from the start, where it rounds
    uncached = sample(apply(model("sd15"), reference_latent=reference(), cache_mib=0), noise, *prompts)
    assert torch.equal(pictures["model"], uncached)
    assert 0 < distance(pictures["float16"], uncached) < 1e-3


def test_each_widget_has_its_effect() -> None:
    """Every setting changes the picture, and each in its own way."""
    noise, prompts = latent(2, 4, 16, 12), (prompt("sd15", 1), prompt("sd15", 2))
    base = {"reference_latent": reference(), "strength": 0.5}
    variants = [
        {},
        {"strength": -0.5},
        {"blocks": "all"},
        {"blocks": "custom", "custom_blocks": "middle"},
        {"mode": "concat"},
        {"start_percent": 0.6},
        {"end_percent": 0.4},
        {"reference_seed": 1},
        {"reference_latent": None},
        {"reference_positive": prompt("sd15", 3)},
        {"mask": torch.eye(16)},
        {"reference_mask": torch.eye(9)},
        {"reference_every": 3},
        {"share_conditional": True},
    ]
    pictures = [sample(apply(model("sd15"), **{**base, **variant}), noise, *prompts) for variant in variants]
    pictures.append(sample(model("sd15"), noise, *prompts))
    for i, one in enumerate(pictures):
        for other in pictures[i + 1 :]:
            assert (one - other).abs().max() > 1e-4
