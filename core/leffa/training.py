"""Training of Leffa (arXiv 2412.08486): both U-Nets learn to dress, and at last where to look.

    L = |eps - eps_theta(z_t, mask, masked picture, body, reference)|^2 + L_leffa

All weights of both U-Nets learn but those that no result depends on, which are not there: the cross-attentions, and in
the reference U-Net what comes after its last feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.ops
import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.attention import AttentionLayer
from ..patches.blocks import Layer
from ..patches.training import Noised, denoise, differentiable, pass_of
from ..patches.unet import self_attention_layers
from .kernel import MAX_TIMESTEP, MIN_RATIO, TEMPERATURE, WEIGHT, flow_errors
from .layout import CHANNELS, GENERATIVE, REFERENCE
from .model import LeffaSampling, LeffaSD15, LeffaSDXL
from .unet import CLASSES, LeffaUNet

TIMESTEPS = 1000
FIRST_CONVOLUTION = "input_blocks.0.0.weight"
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """How to train; what the paper says is the default.

    Attributes:
        leffa: adds L_leffa, as the last, short phase does.
        weight: lambda.
        temperature: tau.
        max_timestep: samples from this one on do not count.
        min_ratio: layers with a grid below this part of the picture's height do not count.
        gradient_checkpointing: recomputes blocks for their gradients, instead of keeping what is in them.
    """

    leffa: bool = False
    weight: float = WEIGHT
    temperature: float = TEMPERATURE
    max_timestep: int = MAX_TIMESTEP
    min_ratio: float = MIN_RATIO
    gradient_checkpointing: bool = True


@dataclass(frozen=True, eq=False)
class Batch:
    """What is learnt from. B persons.

    Attributes:
        target: (B, 4, h, w), latents of the persons, as the U-Net takes them.
        condition: (B, 8, h, w): mask, latent of the masked picture, body map in [-1, 1].
        reference: (B, 4, h', w'), latents of what they wear, or of the persons in another pose; zeros where dropped.
        is_shown: (B,), false where the reference is dropped.
        timesteps: (B,) whole numbers.
        noise: (B, 4, h, w).
        person, worn: (B, 3, H, W) and (B, 3, H', W') in [-1, 1], the pictures behind target and reference.
        mask: (B, 1, H, W), 0 and 1, what is painted.
    """

    target: Tensor
    condition: Tensor
    reference: Tensor
    is_shown: Tensor
    timesteps: Tensor
    noise: Tensor
    person: Tensor
    worn: Tensor
    mask: Tensor


class TryOn(nn.Module):
    """Both U-Nets in float32, with their losses.

    Args:
        sampling: ComfyUI's `model_sampling` of Leffa's model.
        config: the base U-Net's, in ComfyUI's form.
        weights: what each starts from, by the prefixes of a Leffa file, under ComfyUI's names.
    """

    def __init__(self, sampling: Any, config: Mapping[str, Any], weights: Mapping[str, Weights]) -> None:
        super().__init__()
        self.settings = Settings()
        self._sampling = [sampling]  # in a list: its buffers belong to ComfyUI's model
        self.generative = trainable(GENERATIVE, config, weights[GENERATIVE])
        self.reference = trainable(REFERENCE, config, weights[REFERENCE])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of a batch: "loss", and its parts "denoising" and, if chosen, "leffa"."""
        noised = Noised(self._sampling[0], batch.target, batch.noise, batch.timesteps, torch.float32)
        layers: list[AttentionLayer] = []
        out = self._predict(noised.entering, noised.timesteps, batch, layers)
        denoising = F.mse_loss(noised.predicted(out), batch.noise)
        if not self.settings.leffa:
            return {"loss": denoising, "denoising": denoising}
        leffa = self._leffa(batch, layers)
        return {"loss": denoising + leffa, "denoising": denoising, "leffa": leffa}

    def denoised(self, batch: Batch, x: Tensor, sigma: Tensor) -> Tensor:
        """The batch's persons without noise, predicted from x (B, 4, h, w) at a noise level (B,); for samplers."""
        return denoise(self._sampling[0], lambda entering, told: self._predict(entering, told, batch, []), x, sigma)

    def _predict(self, x: Tensor, timesteps: Tensor, batch: Batch, layers: list[AttentionLayer]) -> Tensor:
        """The generative U-Net's output; its queries with the reference's keys are added to `layers`."""
        features, grids = self._read(batch.reference, timesteps)
        attentions = self_attention_layers(self.generative)
        number_of = {place: number for number, place in enumerate(attentions)}
        seen: dict[Layer, tuple[Tensor, tuple[int, int]]] = {}

        # By label and not by order: a block that is recomputed for its gradient goes through here again.
        def look(n: Tensor, context: Tensor, value: Tensor, at: dict[str, Any]) -> tuple[Tensor, ...]:
            place = at["block"], at["block_index"]
            seen[place] = n, tuple(at["activations_shape"][-2:])
            joined = torch.cat([n, features[number_of[place]]], dim=1)
            return n, joined, joined

        entering = torch.cat([x, batch.condition], dim=1)
        out = self._evaluate(self.generative, entering, timesteps, look)
        if self.settings.leffa:
            for number, (place, layer) in enumerate(attentions.items()):
                n, grid = seen[place]
                q, k = layer.attn1.to_q(n), layer.attn1.to_k(features[number])
                layers.append(AttentionLayer(q, k, layer.attn1.heads, grid, grids[number]))
        return out

    def _read(self, latents: Tensor, timesteps: Tensor) -> tuple[list[Tensor], list[tuple[int, int]]]:
        """The reference U-Net's features, (B, M, C) for each layer in the order they run, and their grids."""
        recorded: dict[Layer, tuple[Tensor, tuple[int, int]]] = {}

        def record(n: Tensor, context: Tensor, value: Tensor, at: dict[str, Any]) -> tuple[Tensor, ...]:
            recorded[at["block"], at["block_index"]] = n, tuple(at["activations_shape"][-2:])
            return n, context, value

        self._evaluate(self.reference, latents, timesteps, record)
        # The last layer's attention is cut off, so that it is none of the layers with self-attention any more.
        features, grids = zip(*recorded.values(), strict=True)
        return list(features), list(grids)

    def _evaluate(self, unet: UNetModel, x: Tensor, timesteps: Tensor, patch: Any) -> Tensor:
        options = {"optimized_attention_override": differentiable, "patches": {"attn1_patch": [patch]}}
        return pass_of(self.settings.gradient_checkpointing)(unet, x, timesteps, None, None, None, options)

    def _leffa(self, batch: Batch, layers: list[AttentionLayer]) -> Tensor:
        """L_leffa; a sum over samples, so that it does not depend on how they are spread over processes.

        Samples at high noise, and those whose reference is dropped, cost nothing. What is left is divided by
        how many samples are expected to be late enough.
        """
        settings, late = self.settings, batch.timesteps < self.settings.max_timestep
        rows = torch.nonzero(late & batch.is_shown.cpu()).flatten().to(batch.target.device)
        if not len(rows):
            return batch.target.new_zeros(())
        chosen = [
            AttentionLayer(each.q[rows].float(), each.k[rows].float(), each.heads, each.grid, each.reference_grid)
            for each in layers
        ]
        # Coordinates are finer than what mixed precision resolves.
        with torch.autocast(batch.target.device.type, enabled=False):
            errors = flow_errors(
                chosen,
                batch.worn[rows],
                batch.person[rows],
                batch.mask[rows],
                settings.temperature,
                settings.min_ratio,
            )
        expected = len(batch.target) * settings.max_timestep / TIMESTEPS
        return settings.weight * errors.sum() / expected


def trainable(part: str, config: Mapping[str, Any], weights: Weights) -> LeffaUNet:
    """One of the U-Nets in float32 with gradients.

    Args:
        part: GENERATIVE or REFERENCE.
        config: of the base, in ComfyUI's form.
        weights: of the base; what its first convolution has no inputs for starts from zeros, what it has too many of is
            left out.
    """
    channels = CHANNELS[part]
    changes = {"in_channels": channels, "num_classes": None, "adm_in_channels": None, "dtype": torch.float32}
    unet = CLASSES[part](**{**config, **changes}, device="cpu", operations=comfy.ops.manual_cast)
    with torch.no_grad():
        for name, weight in unet.state_dict().items():
            source = weights[name].float()
            if name == FIRST_CONVOLUTION:
                common = min(channels, source.shape[1])
                weight.zero_()
                weight[:, :common] = source[:, :common]
            else:
                weight.copy_(source)
    return unet.train().requires_grad_(True)


def family_of(config: Mapping[str, Any]) -> tuple[dict[str, Any], LeffaSampling]:
    """A base U-Net's configuration as Leffa's, and its noise schedule, both as the loader will have them.

    The number of heads is the family's, because a Leffa file does not tell it.
    """
    described = (LeffaSDXL if config["use_linear_in_transformer"] else LeffaSD15)(dict(config))
    return dict(described.unet_config), LeffaSampling(described)


def official(module: TryOn, config: Mapping[str, Any]) -> Weights:
    """What was trained, by its names in the official layout.

    Args:
        config: of the base U-Net, in ComfyUI's form.
    """
    trained = {GENERATIVE: module.generative.state_dict(), REFERENCE: module.reference.state_dict()}
    return {
        prefix + theirs: weights[ours].detach().cpu()
        for prefix, weights in trained.items()
        for theirs, ours in official_names(config).items()
        if ours in weights
    }


def official_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Names of a U-Net's weights, diffusers' -> ComfyUI's, with those that Leffa carries without using them."""
    # ComfyUI's table knows a second name for what is added to the timestep.
    names = comfy.utils.unet_to_diffusers(dict(config)).items()
    return {theirs: ours for theirs, ours in names if not theirs.startswith("class_embedding")}


def vae_to_diffusers(weights: Weights) -> Weights:
    """A VAE's weights by diffusers' names: ComfyUI's table the other way round.

    A VAE that has not the four levels which that table knows keeps its names; ComfyUI reads both.
    """
    from comfy.diffusers_convert import convert_vae_state_dict

    if "decoder.up.3.block.0.norm1.weight" not in weights or "decoder.up.4.block.0.norm1.weight" in weights:
        return dict(weights)
    candidates = _diffusers_names()
    renamed = convert_vae_state_dict({name: torch.empty(1, 1) for name in candidates})
    back = dict(zip(renamed, candidates, strict=True))
    # ComfyUI's convolutions of 1 x 1 in the attention are linear layers there.
    return {
        back.get(name, name): weight[..., 0, 0] if ".attn_1." in name and weight.ndim == 4 else weight
        for name, weight in weights.items()
    }


def _diffusers_names() -> list[str]:
    """Names of a VAE of Stable Diffusion in diffusers' present naming, where they differ from ComfyUI's."""
    parts = ["norm1", "conv1", "norm2", "conv2", "conv_shortcut"]
    modules = [f"{side}.conv_norm_out" for side in ("encoder", "decoder")]
    for side, blocks, scale in (("encoder", "down", 2), ("decoder", "up", 3)):
        middle = f"{side}.mid_block"
        modules += [f"{middle}.resnets.{number}.{part}" for number in range(2) for part in parts]
        modules += [f"{middle}.attentions.0.{part}" for part in ("group_norm", "to_q", "to_k", "to_v", "to_out.0")]
        for level in range(4):
            inside = f"{side}.{blocks}_blocks.{level}"
            modules += [f"{inside}.resnets.{number}.{part}" for number in range(scale) for part in parts]
            modules += [f"{inside}.{blocks}samplers.0.conv"] * (level < 3)
    return [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]
