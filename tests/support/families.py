"""A tiny random model of every family, as the host makes it, with prompts and latents that fit.

The smallest models with the true structure: two blocks of each kind. `TinyFamily` says how the host's class is called
and what its detection would have found in a file; `FAMILIES` is the list to parametrise tests with.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.supported_models
import torch
from comfy.model_patcher import CoreModelPatcher, ModelPatcher
from torch import Tensor

FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 16,
    "context_in_dim": 24,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
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
UNET = {
    "image_size": 32,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": (1, 2),
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "legacy": False,
    "num_heads": 2,
    "num_head_channels": -1,
}
WAN = {
    "image_model": "wan2.1",
    "dim": 48,
    "ffn_dim": 64,
    "freq_dim": 32,
    "num_heads": 2,
    "num_layers": 2,
    "text_dim": 24,
    "text_len": 8,
    "out_dim": 16,
    "in_dim": 16,
    "model_type": "t2v",
}
LUMINA = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 64,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 4,
    "n_kv_heads": 2,
    "multiple_of": 32,
    "axes_dims": [8, 4, 4],
    "axes_lens": [64, 64, 64],
    "cap_feat_dim": 24,
    "qk_norm": True,
}


@dataclass(frozen=True)
class TinyFamily:
    """One family.

    Attributes:
        host_class: in `comfy.supported_models`.
        config: what the host finds out about a file of the family.
        size: (C, H, W) or (C, F, H, W) of a latent; the F frames of SVD are a batch.
        frames: of a video, 1 for pictures.
        cfg: 1 where guidance is distilled into the model.
        pooled: size of the pooled text.
        text: size of a text token.
        extra: what a text node adds to the prompt.
        sampling: other settings of the schedule than the host's.
    """

    host_class: str
    config: dict[str, Any]
    size: tuple[int, ...]
    frames: int = 1
    cfg: float = 4.0
    pooled: int = 0
    text: int = 24
    extra: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, float] = field(default_factory=dict)


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
}
VIDEO = [name for name, family in FAMILIES.items() if family.frames > 1]


@functools.cache
def _random_model(name: str, dtype: torch.dtype) -> ModelPatcher:
    return random_model(FAMILIES[name], dtype)


def random_model(family: TinyFamily, dtype: torch.dtype = torch.float32) -> ModelPatcher:
    """A model of the host's class with seeded noise for weights, which computes in a precision on any device."""
    config = getattr(comfy.supported_models, family.host_class)(dict(family.config))
    config.unet_config.update(family.config)  # the class may have put the sizes of the real model there
    config.sampling_settings = {**config.sampling_settings, **family.sampling}
    config.set_inference_dtype(dtype, None)
    device = comfy.model_management.get_torch_device()
    model = config.get_model({}, "", device=device)
    generator = torch.Generator().manual_seed(0)  # the same weights on every device
    with torch.no_grad():
        for key, weight in model.diffusion_model.state_dict().items():
            if weight.is_floating_point():
                fan_in = weight[0].numel() if weight.ndim > 1 else 0
                is_norm = key.endswith(("norm.weight", "scale", "norm_q.weight", "norm_k.weight"))
                random = torch.randn(weight.shape, generator=generator)
                weight.copy_(random * fan_in**-0.5 if fan_in else 0.1 * random + is_norm)
    return CoreModelPatcher(model, load_device=device, offload_device=comfy.model_management.unet_offload_device())


def tiny_model(name: str, dtype: torch.dtype = torch.float32) -> ModelPatcher:
    """A fresh clone of the family's model."""
    return _random_model(name, dtype).clone()


def tiny_prompt(name: str, seed: int, tokens: int = 5) -> list[Any]:
    """A conditioning of random text features in the form the host's text nodes give."""
    return random_prompt(FAMILIES[name], seed, tokens)


def random_prompt(family: TinyFamily, seed: int, tokens: int) -> list[Any]:
    """A conditioning that fits a model of `random_model`."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, tokens, family.text, generator=generator)
    pooled = {"pooled_output": torch.randn(1, family.pooled, generator=generator)} if family.pooled else {}
    return [[text, {**pooled, **family.extra}]]


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
