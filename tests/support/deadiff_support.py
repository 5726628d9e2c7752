"""DEADiff for tests: the recorded U-Net inside the host, recorded tokens in place of pictures, random small files."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import bootstrap
import torch
from safetensors.torch import load_file
from torch import Tensor

if "comfy" not in sys.modules:  # by the parity tool, which knows no host
    bootstrap.prepare_host(cpu=True, exact=True)

import comfy.model_detection
import comfy.samplers
import comfy.supported_models
from comfy.model_patcher import CoreModelPatcher
from refattention.core.deadiff.checkpoint import fill, sizes_of
from refattention.core.deadiff.loaded import DEADiff, ImageProjections, load, load_projections
from refattention.core.deadiff.network import Readers
from refattention.core.deadiff.vision import managed
from refattention.nodes.deadiff import DEADiffStyle
from refattention.nodes.deadiff_sampler import DEADiffSampler

WIDGETS: dict[str, Any] = {
    "mode": "style",
    "strength": 1.0,
    "fit": "squash",
    "combine": "average",
    "strict": True,
    "start_percent": 0.0,
    "end_percent": 1.0,
}
# Kinds of the training's records -> the node's mode
KIND_MODES = {"style": "style", "subject": "content", "reconstruction": "style & content"}
NODE_MODES = {"style": "style", "content": "content", "both": "style & content"}
PICTURE = torch.zeros(1, 8, 8, 3)


def golden_unet(folder: Path, name: str) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
    """MODEL, all weights and the configuration of a recorded U-Net."""
    info = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    weights: dict[str, Tensor] = {}
    for part in info["weight_files"]:
        weights |= load_file(folder / part)
    return host_unet(weights, info["config"]), weights, info


def host_unet(weights: dict[str, Tensor], config: dict[str, Any]) -> Any:
    """The host's own SD1.5 network and patcher, filled with weights of any size; sizes are read from the weights."""
    prefix = "model.diffusion_model."
    stock = {
        key.removeprefix(prefix): t for key, t in weights.items() if key.startswith(prefix) and ".i_to_" not in key
    }
    settings = comfy.supported_models.SD15(comfy.model_detection.detect_unet_config(stock, ""))
    settings.set_inference_dtype(torch.float32, None)
    # The host fixes the heads of the family after it has read the weights.
    settings.unet_config |= {key: config[key] for key in ("num_heads", "num_head_channels") if key in config}
    device = comfy.model_management.get_torch_device()
    model = settings.get_model({}, "", device=device)
    model.diffusion_model.load_state_dict(stock)
    return CoreModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def load_with_heads(weights: dict[str, Tensor], config: dict[str, Any]) -> DEADiff:
    """DEADiff from tensors, with the numbers of heads that a recorded configuration names."""
    return load(weights, qformer_heads=config["heads"], vision_heads=config["vit_heads"])


def readers(weights: dict[str, Tensor], config: dict[str, Any]) -> Any:
    """The patcher of the Q-Formers alone."""
    model = Readers(sizes_of(weights, config["heads"]), device="meta", dtype=torch.float32)
    fill(model, weights)
    return managed(model)


def random_projections(tokens: int, width: int = 32) -> dict[str, Tensor]:
    """Image projections of one layer, for where only the tokens matter."""
    prefix = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2."
    generator = torch.Generator().manual_seed(0)
    return {f"{prefix}i_to_{kind}.weight": torch.randn(width, tokens, generator=generator) for kind in "kv"}


class RecordedTokens:
    """Takes DEADiff's place at the node: gives recorded tokens, whatever the picture, and projects them for real."""

    def __init__(self, weights: dict[str, Tensor], style: Tensor, content: Tensor, content_layers: list[int]) -> None:
        self._real: ImageProjections = load_projections(weights)
        self._recorded = {"style": style, "content": content}
        self._content_layers = content_layers
        self.projections = self

    def tokens(self, branch: str, *_: Any) -> Tensor:
        return self._recorded[branch]

    def project(self, tokens: dict[str, Tensor], _: Any, zero_tokens: bool) -> Any:
        return self._real.project(tokens, self._content_layers, zero_tokens)


def apply(patcher: Any, deadiff: Any, **inputs: Any) -> Any:
    """What DEADiffStyle gives."""
    return DEADiffStyle.execute(patcher, deadiff, PICTURE, **{**WIDGETS, **inputs})[0]


def evaluate(patcher: Any, x: Tensor, timesteps: Tensor, text: Tensor, uncond_text: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted noise of both halves, from one evaluation with CFG by the host's sampling.

    Args:
        x: (B, 4, h, w), noised to unit variance.
        timesteps: (B,), one for each sample.
    """
    sampling = patcher.get_model_object("model_sampling")
    sigma = sampling.sigmas[timesteps].to(x)
    scale = sigma[:, None, None, None]
    scaled = x * (1 + scale**2).sqrt()
    seen: dict[str, Tensor] = {}

    def watch(arguments: dict[str, Any]) -> Tensor:
        seen.update({half: (scaled - arguments[half]) / scale for half in ("cond_denoised", "uncond_denoised")})
        return arguments["denoised"]

    def once(model: Any, noise: Tensor, sigmas: Tensor, extra_args: dict[str, Any], **_: Any) -> Tensor:
        model(scaled, sigma, **extra_args)
        return noise

    watched = patcher.clone()
    watched.set_model_sampler_post_cfg_function(watch)
    guider = comfy.samplers.CFGGuider(watched)
    guider.set_conds([[text, {}]], [[uncond_text, {}]])
    guider.set_cfg(8.0)
    with torch.inference_mode():
        sampler = comfy.samplers.KSAMPLER(once)
        guider.sample(x, torch.zeros_like(x), sampler, torch.tensor([5.0, 0.0]), disable_pbar=True, seed=0)
    return seen["cond_denoised"], seen["uncond_denoised"]


def official_loop(
    patcher: Any, noise: Tensor, text: Tensor, uncond_text: Tensor, steps: int, cfg: float
) -> dict[str, Tensor]:
    """The official DDIM loop through DEADiffSampler.

    Returns:
        "final", and for each step "x_after_step0", … and "pred_x0_step0", …, all in the model's own latent space.
    """
    sampler, sigmas = DEADiffSampler.execute(patcher, steps)
    found: dict[str, Tensor] = {}

    def callback(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        found[f"pred_x0_step{step}"] = denoised.clone()
        if step:
            found[f"x_after_step{step - 1}"] = x / (1 + sigmas[step] ** 2).sqrt()

    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds([[text, {}]], [[uncond_text, {}]])
    guider.set_cfg(cfg)
    with torch.inference_mode():
        out = guider.sample(
            noise, torch.zeros_like(noise), sampler, sigmas, callback=callback, disable_pbar=True, seed=0
        )
    found["final"] = found[f"x_after_step{len(sigmas) - 2}"] = patcher.model.process_latent_in(out)
    return found


def parse(name: str) -> tuple[str, str, float]:
    """ "out.official.style.w0.6" -> ("official", "style", 0.6)."""
    _, layers, mode, weight = re.fullmatch(r"(out)\.(\w+)\.(\w+)\.w([\d.]+)", name).groups()
    return layers, mode, float(weight)
