"""Leffa at full size with random weights: the pack's models, and the published code's on the same weights.

The published code is run, never copied: put it where `OFFICIAL` says, with diffusers beside it,

    git clone https://github.com/franciszzj/Leffa out/official
    .venv/bin/pip install --target out/official_deps --no-deps diffusers==0.31.0 importlib_metadata zipp
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.samplers
import torch
from refattention.core.leffa import layout
from refattention.core.leffa.loader import LeffaParts, from_state_dict
from refattention.core.leffa.reference import REFERENCES, Reference
from refattention.core.leffa.settings import LeffaSettings
from refattention.core.leffa.unet import LeffaUNet, ReferenceUNet
from refattention.core.leffa.wrappers import apply_leffa, attach_reference_unet
from torch import Tensor

OFFICIAL = Path(__file__).resolve().parent.parent / "out" / "official"
SD15 = {
    "act_fn": "silu", "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False, "cross_attention_dim": 768, "downsample_padding": 1, "flip_sin_to_cos": True,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"], "freq_shift": 0, "in_channels": 4,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3], "layers_per_block": 2, "mid_block_scale_factor": 1,
    "norm_eps": 1e-5, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
}  # fmt: skip
HOST = {
    "image_size": 32, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1] * 9 + [0] * 3, "use_linear_in_transformer": False,
    "use_spatial_transformer": True, "legacy": False, "context_dim": 1, "num_heads": 8,
}  # fmt: skip


def random_weights() -> dict[str, Tensor]:
    """A slim checkpoint of try-on's layout: seeded noise of the usual scale in float32."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for prefix, kind in ((layout.GENERATIVE, LeffaUNet), (layout.REFERENCE, ReferenceUNet)):
        shapes = without_weights(kind, prefix).state_dict()
        for theirs, ours in layout.to_host(HOST).items():
            if ours in shapes:
                weights[prefix + theirs] = _random(shapes[ours].shape, generator)
    return weights


def without_weights(kind: type[LeffaUNet], prefix: str) -> LeffaUNet:
    """One of the pack's U-Nets at full size on the device that computes nothing."""
    return kind(**HOST, in_channels=layout.CHANNELS[prefix], device=torch.device("meta"), dtype=torch.float32)


def _random(shape: torch.Size, generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return torch.full(shape, 0.5)
    return torch.randn(shape, generator=generator) * shape[1:].numel() ** -0.5


class Inputs:
    """One person and one garment in latent space."""

    def __init__(self, width: int, height: int, device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(1)
        size = height // 8, width // 8
        self.noise, self.garment = (torch.randn(1, 4, *size, generator=generator).to(device) for _ in range(2))
        self.concat = torch.randn(1, 8, *size, generator=generator).to(device)


def ours(parts: LeffaParts, inputs: Inputs, interval: int, cache_bytes: int) -> Callable[[Callable[..., Any]], Any]:
    """Prepares evaluations with CFG.

    The returned function opens a sampling run and calls its argument with `evaluate(timestep)`, which returns the
    guided noise prediction; it returns what that returns.
    """
    model = attach_reference_unet(parts.generative, parts.reference, cache_bytes)
    patched = apply_leffa(model, LeffaSettings(interval))
    garment = Reference(inputs.garment[0])
    halves = {"positive": garment, "negative": Reference(torch.zeros_like(garment.latent), is_zero=True)}
    guider = comfy.samplers.CFGGuider(patched)
    guider.inner_set_conds(
        {
            name: [[torch.zeros(1, 1, 1), {"noise_concat": inputs.concat, REFERENCES: (reference,)}]]
            for name, reference in halves.items()
        }
    )
    guider.set_cfg(2.5)
    sampling = patched.get_model_object("model_sampling")

    def run(observe: Callable[..., Any]) -> Any:
        result = None

        def evaluations(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], **_: Any) -> Tensor:
            nonlocal result

            def evaluate(timestep: int) -> Tensor:
                # As in `models.evaluation`
                patched.model.current_patcher = patched
                sigma = sampling.sigma(torch.tensor([timestep])).to(x)
                noisy = inputs.noise.to(x) * (1 + sigma**2) ** 0.5
                return (noisy - model(noisy, sigma, **extra_args)) / sigma

            result = observe(evaluate)
            return x

        sigmas = torch.cat([sampling.sigma(torch.tensor([981, 601])), torch.zeros(1)])
        sampler = comfy.samplers.KSAMPLER(evaluations)
        with torch.inference_mode():
            guider.sample(inputs.noise, torch.zeros_like(inputs.noise), sampler, sigmas, disable_pbar=True, seed=0)
        return result

    return run


class Published:
    """The published code's two U-Nets, one step as in its pipeline.

    Args:
        units: generative and reference U-Net, with the checkpoint's weights.
    """

    def __init__(self, units: list[Any]) -> None:
        from leffa.pipeline import rescale_noise_cfg

        self._rescale = rescale_noise_cfg
        self._units = [unit.eval() for unit in units]

    @classmethod
    def from_weights(cls, weights: dict[str, Tensor], device: str = "cpu") -> Published:
        """Weights of `random_weights`, which are used in place; others are zeros on a device."""
        units = published_units("meta")
        for prefix, unit in units.items():
            filled = {
                name: weights.get(prefix + name, torch.zeros(value.shape, device=device))
                for name, value in unit.state_dict().items()
            }
            unit.load_state_dict(filled, assign=True)
        return cls(list(units.values()))

    @classmethod
    def from_file(cls, path: str) -> Published:
        """A checkpoint, as the published `LeffaModel` loads it."""
        units = published_units("cpu")
        torch.nn.ModuleDict({prefix[:-1]: unit for prefix, unit in units.items()}).load_state_dict(
            torch.load(path, map_location="cpu")
        )
        return cls(list(units.values()))

    def features(self, inputs: Inputs, timestep: int) -> list[Tensor]:
        """The reference U-Net on the zeros and the garment."""
        both = torch.cat([torch.zeros_like(inputs.garment), inputs.garment])
        features = self._units[1](both, timestep, encoder_hidden_states=None, return_dict=False)[1]
        return list(features)

    def evaluate(self, inputs: Inputs, timestep: int, features: list[Tensor], scale: float = 2.5) -> Tensor:
        """The guided and rescaled noise prediction."""
        x = torch.cat([torch.cat([inputs.noise, inputs.concat], dim=1)] * 2)
        noise = self._units[0](
            x, timestep, encoder_hidden_states=None, reference_features=list(features), return_dict=False
        )[0]
        zero, garment = noise.chunk(2)
        return self._rescale(zero + scale * (garment - zero), garment, guidance_rescale=scale)


def published_units(device: str) -> dict[str, Any]:
    """Both U-Nets of the published code, as it builds them, by the prefix of their weights."""
    sys.path[:0] = [str(OFFICIAL), str(OFFICIAL.with_name("official_deps"))]
    from leffa.diffusion_model.unet_gen import UNet2DConditionModel as GenerativeUNet
    from leffa.diffusion_model.unet_ref import UNet2DConditionModel as PublishedReferenceUNet
    from leffa.model import remove_cross_attention

    units = {}
    for prefix, kind in ((layout.GENERATIVE, GenerativeUNet), (layout.REFERENCE, PublishedReferenceUNet)):
        with torch.device(device):
            units[prefix] = kind(**{**SD15, "in_channels": layout.CHANNELS[prefix]})
        remove_cross_attention(units[prefix])
    return units


def published_weights() -> dict[str, Tensor]:
    """A checkpoint as published, with what never reaches the result: zeros."""
    weights = random_weights()
    for prefix, unit in published_units("meta").items():
        for name, value in unit.state_dict().items():
            weights.setdefault(prefix + name, torch.zeros(value.shape))
    return weights


def load(weights: dict[str, Tensor]) -> LeffaParts:
    """The pack's models on copies of the weights."""
    return from_state_dict(dict(weights), "random weights")
