"""RefDropApply: what the widgets become, and what wrong input is told."""

from __future__ import annotations

import math
from typing import Any

import comfy.supported_models
import pytest
import torch
from comfy.model_patcher import CoreModelPatcher
from refattention.nodes.refdrop import RefDropApply
from sampling import latent, model, prompt, sample

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
FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "hidden_size": 128,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
    "vec_in_dim": 768,
    "context_in_dim": 64,
    "mlp_ratio": 4.0,
    "txt_ids_dims": [],
}
SVD = {
    "image_size": 32,
    "in_channels": 8,
    "out_channels": 4,
    "model_channels": 64,
    "channel_mult": [1, 1],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 64,
    "adm_in_channels": 768,
    "num_classes": "sequential",
    "use_spatial_transformer": True,
    "legacy": False,
    "use_linear_in_transformer": True,
    "use_temporal_attention": True,
    "use_temporal_resblock": True,
    "video_kernel_size": [3, 1, 1],
    "use_spatial_context": True,
    "extra_ff_mix_layer": True,
    "merge_strategy": "learned_with_images",
    "merge_factor": 0.0,
}


def apply(patcher: Any, **inputs: Any) -> Any:
    return RefDropApply.execute(patcher, **{**WIDGETS, **inputs})[0]


def reference(*shape: int) -> dict[str, Any]:
    return {"samples": latent(*(shape or (1, 4, 9, 11)))}


def other_family(name: str, config: dict[str, Any]) -> CoreModelPatcher:
    settings = getattr(comfy.supported_models, name)(dict(config))
    settings.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    return CoreModelPatcher(
        settings.get_model({}, "", device=torch.device("meta")), load_device=cpu, offload_device=cpu
    )


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


@pytest.mark.parametrize(("name", "config"), [("Flux", FLUX), ("SVD_img2vid", SVD)])
def test_a_family_that_cannot_be_patched_is_named(name: str, config: dict[str, Any]) -> None:
    with pytest.raises(
        RuntimeError, match=rf"RefDropApply cannot patch the attention of a {name} model.*SD1.5, SD2 or SDXL"
    ):
        apply(other_family(name, config), reference_latent=reference())


def test_hooks_in_the_references_prompt_are_refused() -> None:
    text, options = prompt("sd15", 1)[0]
    with pytest.raises(ValueError, match="reference_positive carries hooks"):
        apply(model("sd15"), reference_latent=reference(), reference_positive=[[text, {**options, "hooks": object()}]])


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
    ]
    pictures = [sample(apply(model("sd15"), **{**base, **variant}), noise, *prompts) for variant in variants]
    pictures.append(sample(model("sd15"), noise, *prompts))
    for i, one in enumerate(pictures):
        for other in pictures[i + 1 :]:
            assert (one - other).abs().max() > 1e-4
