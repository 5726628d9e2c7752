"""Models of full size, with random weights or without any, and one step of the sampler on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.supported_models
import torch
from comfy.model_patcher import CoreModelPatcher

COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "legacy": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": {
        "channel_mult": (1, 2, 4, 4),
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "context_dim": 768,
        "use_linear_in_transformer": False,
        "use_temporal_attention": False,
        "num_classes": None,
        "adm_in_channels": None,
    },
    "sdxl": {
        "channel_mult": (1, 2, 4),
        "num_res_blocks": [2, 2, 2],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
        "context_dim": 2048,
        "use_linear_in_transformer": True,
        "use_temporal_attention": False,
        "num_classes": "sequential",
        "adm_in_channels": 2816,
    },
}
CLASSES = {"sd15": "SD15", "sdxl": "SDXL"}
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768,
    "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19,
    "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "guidance_embed": True,
    "txt_ids_dims": [],
}  # fmt: skip
_WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "freq_dim": 256, "text_dim": 4096, "text_len": 512, "in_dim": 16,
    "out_dim": 16,
}  # fmt: skip
WAN_SMALL = {**_WAN, "dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}
WAN_LARGE = {**_WAN, "dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}


def random_model(family: str, dtype: torch.dtype) -> CoreModelPatcher:
    """The family's U-Net at full size; weights are seeded noise of the usual scale."""
    device = comfy.model_management.get_torch_device()
    return drawn(network(CLASSES[family], {**COMMON, **CONFIGS[family]}, dtype, device), device)


def network(host_class: str, sizes: dict[str, Any], dtype: torch.dtype, device: torch.device) -> Any:
    """A model of one of ComfyUI's classes; what its weights hold is left open."""
    config = getattr(comfy.supported_models, host_class)(dict(sizes))
    # Some classes put defaults of their own over what they were given.
    config.unet_config.update(sizes)
    config.set_inference_dtype(dtype, None)
    return config.get_model({}, "", device=device)


def drawn(model: Any, device: torch.device, vectors: float = 0.5) -> CoreModelPatcher:
    """The model with seeded noise of the usual scale in its matrices, and one number in all vectors."""
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for weight in model.diffusion_model.parameters():
            fan_in = weight[0].numel() if weight.ndim > 1 else 0
            weight.normal_(0, fan_in**-0.5, generator=generator) if fan_in else weight.fill_(vectors)
    return CoreModelPatcher(model, load_device=device, offload_device=comfy.model_management.unet_offload_device())


def prompt(family: str, seed: int) -> list[Any]:
    """A conditioning of 77 random tokens."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, 77, CONFIGS[family]["context_dim"], generator=generator)
    return [[text, {"pooled_output": torch.randn(1, 1280, generator=generator)}]]


Run = Callable[[Callable[..., Any]], Any]


def sampler_step(patcher: CoreModelPatcher, family: str, pixels: int, batch: int = 1, seed: int = 1) -> Run:
    """Prepares one evaluation of a U-Net with CFG; as `evaluation`."""
    noise = torch.randn(batch, 4, pixels // 8, pixels // 8, generator=torch.Generator().manual_seed(seed))
    return evaluation(patcher, noise, prompt(family, 2), prompt(family, 3), cfg=7.5, level=5.0)


def evaluation(
    patcher: CoreModelPatcher, noise: torch.Tensor, positive: list[Any], negative: list[Any], cfg: float, level: float
) -> Run:
    """Prepares one evaluation at a noise level.

    The returned function opens a sampling run, calls its argument with the evaluation, to be repeated at will while the
    run is open, and returns what that returns.
    """
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)

    def run(observe: Callable[..., Any]) -> Any:
        result = None

        def one_evaluation(
            model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict[str, Any], **_: Any
        ) -> torch.Tensor:
            nonlocal result
            sigma = sigmas[:1].expand(len(x))

            def evaluate() -> torch.Tensor:
                # Runs that are compared are open at once, and ComfyUI remembers the one that was opened last.
                patcher.model.current_patcher = patcher
                return model(x, sigma, **extra_args)

            result = observe(evaluate)
            return x

        sigmas = torch.tensor([level, 0.0])
        with torch.inference_mode():
            guider.sample(
                noise,
                torch.zeros_like(noise),
                comfy.samplers.KSAMPLER(one_evaluation),
                sigmas,
                disable_pbar=True,
                seed=0,
            )
        return result

    return run
