"""Tiny random models of the host's classes, with the sizes that its detection would have found in a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.supported_models
import torch
from comfy.model_patcher import CoreModelPatcher, ModelPatcher

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
        left_out: parts of the module that are of the real model's size and serve inputs that no test gives.
        weights: what the class looks for in the file while it builds the model.
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
    left_out: tuple[str, ...] = ()
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


def random_model(family: TinyFamily, dtype: torch.dtype = torch.float32, operations: Any = None) -> ModelPatcher:
    """A model of the host's class with seeded noise for weights, which computes in a precision on any device.

    Args:
        operations: layers in place of the host's, as loaders of quantised files bring them.
    """
    config = getattr(comfy.supported_models, family.host_class)(dict(family.config))
    config.unet_config.update(family.config)  # the class may have put the sizes of the real model there
    config.sampling_settings = {**config.sampling_settings, **family.sampling}
    config.set_inference_dtype(dtype, None)
    config.custom_operations = operations
    device = comfy.model_management.get_torch_device()
    model = config.get_model(family.weights, "", device=device)
    for name in family.left_out:
        delattr(model.diffusion_model, name)
    generator = torch.Generator().manual_seed(0)  # the same weights on every device
    with torch.no_grad():
        for key, weight in model.diffusion_model.state_dict().items():
            if weight.is_floating_point():
                fan_in = weight[0].numel() if weight.ndim > 1 else 0
                is_norm = key.endswith(("norm.weight", "scale", "norm_q.weight", "norm_k.weight"))
                random = torch.randn(weight.shape, generator=generator)
                weight.copy_(random * fan_in**-0.5 if fan_in else 0.1 * random + is_norm)
    return CoreModelPatcher(model, load_device=device, offload_device=comfy.model_management.unet_offload_device())


def random_prompt(family: TinyFamily, seed: int, tokens: int) -> list[Any]:
    """A conditioning that fits a model of `random_model`."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, tokens, family.text, generator=generator)
    pooled = {"pooled_output": torch.randn(1, family.pooled, generator=generator)} if family.pooled else {}
    return [[text, {**pooled, **family.extra}]]
