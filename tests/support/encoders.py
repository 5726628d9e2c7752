"""Small vision encoders of the host's own classes, with seeded weights."""

from __future__ import annotations

from typing import Any

import torch
from comfy.clip_vision import ClipVisionModel

CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_act": "quick_gelu",
    "num_channels": 3,
    "image_size": 28,
    "patch_size": 7,
    "projection_dim": 16,
}
SIGLIP2 = {**CLIP, "model_type": "siglip2_vision_model", "image_size": -1, "num_patches": 16}
DINO2 = {
    "model_type": "dinov2",
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "layer_norm_eps": 1e-6,
    "use_swiglu_ffn": False,
    "image_size": 28,
    "patch_size": 7,
}
DINO3 = {
    **CLIP,
    "model_type": "dinov3",
    "num_register_tokens": 4,
    "layer_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "use_gated_mlp": True,
    "gated_mlp_act": "silu",
}
CONFIGS = {
    "clip": CLIP,
    "siglip": {**CLIP, "model_type": "siglip_vision_model"},
    "siglip2": SIGLIP2,
    "dino2": DINO2,
    "dino3": DINO3,
}


def encoder(kind: str) -> Any:
    """A CLIP_VISION with seeded weights."""
    vision = ClipVisionModel(CONFIGS[kind])
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in vision.model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return vision
