"""A tiny random model of every family, as the host makes it, with prompts and latents that fit.

The smallest models with the true structure: two blocks of each kind. `TinyFamily` says how the host's class is called
and what its detection would have found in a file; `FAMILIES` is the list to parametrise tests with.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from more_families import MORE
from tiny_family import FLUX, LUMINA, UNET, WAN, TinyFamily, random_model, random_prompt
from torch import Tensor

SD3 = {
    "in_channels": 16,
    "patch_size": 2,
    "input_size": None,
    "depth": 2,  # a head of 64 for each block of depth
    "mlp_ratio": 2.0,
    "pos_embed_max_size": 24,
    "pos_embed_scaling_factor": None,
    "adm_in_channels": 16,
    "qkv_bias": True,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 24, "out_features": 128}},
}


FAMILIES: dict[str, TinyFamily] = {
    "sd15": TinyFamily("SD15", {**UNET, "in_channels": 4, "context_dim": 24, "num_classes": None}, (4, 8, 12)),
    "sd2": TinyFamily("SD20", {**UNET, "in_channels": 4, "context_dim": 24, "num_classes": None}, (4, 8, 12)),
    "sd3": TinyFamily("SD3", SD3, (16, 8, 12), pooled=16),
    "sd35": TinyFamily("SD3", {**SD3, "qk_norm": "rms", "x_block_self_attn_layers": [0]}, (16, 8, 12), pooled=16),
    "flux": TinyFamily("Flux", {"image_model": "flux", **FLUX}, (16, 8, 12), cfg=1.0, pooled=16),
    "flux2": TinyFamily(
        "Flux2",
        {
            **{**FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "theta": 2000},
            **{"axes_dim": [8, 8, 8, 8], "vec_in_dim": None, "qkv_bias": False, "ops_bias": False},
            **{"global_modulation": True, "mlp_silu_act": True, "txt_ids_dims": [3]},
        },
        (128, 4, 6),
        cfg=1.0,
    ),
    "chroma": TinyFamily(
        "Chroma",
        {
            **{
                key: value
                for key, value in FLUX.items()
                if key not in ("guidance_embed", "in_channels", "out_channels")
            },
            **{"image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 64},
            **{"hidden_dim": 32, "n_layers": 1, "vec_in_dim": 16},
        },
        (16, 8, 12),
    ),
    "qwen": TinyFamily(
        "QwenImage",
        {
            **{"image_model": "qwen_image", "in_channels": 64, "num_layers": 2, "attention_head_dim": 32},
            **{"num_attention_heads": 2, "joint_attention_dim": 24, "axes_dims_rope": (8, 12, 12)},
        },
        (16, 1, 8, 12),
    ),
    "lumina2": TinyFamily("Lumina2", LUMINA, (16, 8, 12)),
    "zimage": TinyFamily(
        "ZImage",
        {
            **LUMINA,
            "dim": 256,
            "n_heads": 16,
            "n_kv_heads": 16,
            "z_image_modulation": True,
            "pad_tokens_multiple": 32,
            "time_scale": 1000.0,
        },
        (16, 8, 10),
        cfg=1.0,
    ),
    "svd": TinyFamily(
        "SVD_img2vid",
        {
            **{**UNET, "in_channels": 8, "context_dim": 24, "num_classes": "sequential", "adm_in_channels": 768},
            **{"use_temporal_attention": True, "use_temporal_resblock": True, "extra_ff_mix_layer": True},
            **{"use_spatial_context": True, "merge_strategy": "learned_with_images", "merge_factor": 0.0},
            "video_kernel_size": [3, 1, 1],
        },
        (4, 8, 12),
        frames=3,
        cfg=2.5,
        sampling={"sigma_max": 20.0, "sigma_min": 0.02},  # at 700 rounding would drown what is to be seen
    ),
    "wan21": TinyFamily("WAN21_T2V", WAN, (16, 3, 8, 12), frames=3),
    "wan22": TinyFamily("WAN22_T2V", {**WAN, "in_dim": 48, "out_dim": 48}, (48, 3, 8, 12), frames=3),
    "wan_i2v": TinyFamily("WAN21_I2V", {**WAN, "in_dim": 36, "model_type": "i2v"}, (16, 3, 8, 12), frames=3),
    "ltxv": TinyFamily(
        "LTXV",
        {
            **{"image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 64, "attention_head_dim": 32},
            **{"num_attention_heads": 2, "caption_channels": 24, "num_layers": 2},
        },
        (128, 3, 4, 6),
        frames=3,
        extra={"attention_mask": torch.ones(1, 5, dtype=torch.int64)},
    ),
    "hunyuan": TinyFamily(
        "HunyuanVideo",
        {
            **{key: value for key, value in FLUX.items() if key not in ("txt_ids_dims",)},
            **{"image_model": "hunyuan_video", "patch_size": [1, 2, 2], "byt5": False, "meanflow": False},
            **{"use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False},
        },
        (16, 3, 8, 12),
        frames=3,
        cfg=1.0,
        pooled=16,
    ),
    **MORE,
}
VIDEO = [name for name, family in FAMILIES.items() if family.frames > 1]


@functools.cache
def _random_model(name: str, dtype: torch.dtype) -> ModelPatcher:
    return random_model(FAMILIES[name], dtype)


def tiny_model(name: str, dtype: torch.dtype = torch.float32) -> ModelPatcher:
    """A fresh clone of the family's model."""
    return _random_model(name, dtype).clone()


def tiny_prompt(name: str, seed: int, tokens: int = 5) -> list[Any]:
    """A conditioning of random text features in the form the host's text nodes give."""
    return random_prompt(FAMILIES[name], seed, tokens)


def tiny_latent(
    name: str, batch: int = 1, seed: int = 0, size: tuple[int, int] | None = None, frames: int = 0
) -> Tensor:
    """Random latents: the frames of one video for SVD."""
    shape = list(FAMILIES[name].size)
    if size:
        shape[-2:] = size
    if frames and len(shape) == 4:
        shape[1] = frames
    if name == "svd":
        batch = frames or FAMILIES[name].frames
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))
