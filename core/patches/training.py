"""What the trainings of several methods share: the base model as a training sees it, and its passes.

A training has a frozen copy of the U-Net, through which gradients pass. Block by block, what is in a block can be
recomputed for its gradients instead of being kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.ops
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel, forward_timestep_embed, timestep_embedding
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .attention import Options
from .blocks import Block

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

PREFIX = "diffusion_model."


@dataclass(frozen=True, eq=False)
class Prompt:
    """A text as the U-Net takes it.

    Attributes:
        context: (1, tokens, width), or a row for each picture.
        y: (1, width), or as many rows, what some families add to the timestep.
    """

    context: Tensor
    y: Tensor | None


def frozen_copy(model: ModelPatcher, dtype: torch.dtype) -> UNetModel:
    """A copy of a model's U-Net with its LoRAs, through which gradients pass; the model itself is not touched.

    The weights that ComfyUI's loaders make take no part in gradients, so there is no doing without a copy.
    """
    comfy.model_management.unload_model_and_clones(model)
    config = {**model.model.model_config.unet_config, "dtype": dtype, "device": model.load_device}
    unet = UNetModel(**config, operations=comfy.ops.manual_cast)
    with torch.no_grad():
        for name, weight in unet.state_dict().items():
            weight.copy_(model.patch_weight_to_device(PREFIX + name, model.load_device, return_weight=True))
    return unet.eval().requires_grad_(False)


def encode(model: ModelPatcher, conditioning: list[Any], latent: Tensor) -> Prompt:
    """A conditioning of ComfyUI, for pictures of the size of a latent (1, c, h, w)."""
    entries = {"positive": comfy.sampler_helpers.convert_cond(conditioning)}
    device = model.load_device
    encoded = comfy.samplers.process_conds(model.model, latent, entries, device, latent)["positive"][0]["model_conds"]
    y = plain(encoded["y"].cond.to(device)) if "y" in encoded else None
    return Prompt(plain(encoded["c_crossattn"].cond.to(device)), y)


def in_rows(prompts: Sequence[Prompt], device: torch.device) -> Prompt:
    """Texts as the rows of one, on a device."""
    ys = [prompt.y for prompt in prompts if prompt.y is not None]
    context = torch.cat([prompt.context for prompt in prompts]).to(device)
    return Prompt(context, torch.cat(ys).to(device) if ys else None)


class Noised:
    """Pictures at noise levels of a model's schedule, as training shows them to its U-Net.

    Args:
        sampling: ComfyUI's `model_sampling` of the model.
        latents, noise: (B, c, h, w) on one device.
        timesteps: (B,) whole numbers.
        dtype: of the U-Net.

    Attributes:
        entering: (B, c, h, w), what the U-Net is given.
        timesteps: (B,), what it is told.
    """

    def __init__(self, sampling: Any, latents: Tensor, noise: Tensor, timesteps: Tensor, dtype: torch.dtype) -> None:
        self._sampling = sampling
        self._sigma = sampling.sigma(timesteps).to(latents.device, torch.float32)[:, None, None, None]
        self._x = sampling.noise_scaling(self._sigma, noise, latents)
        self.entering: Tensor = sampling.calculate_input(self._sigma, self._x).to(dtype)
        self.timesteps: Tensor = sampling.timestep(self._sigma.flatten()).float()

    def predicted(self, out: Tensor) -> Tensor:
        """The noise that an output of the U-Net stands for, whatever the model predicts."""
        denoised = self._sampling.calculate_denoised(self._sigma, out.float(), self._x)
        noise: Tensor = (self._x - denoised) / self._sigma
        return noise


def denoise(sampling: Any, predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor) -> Tensor:
    """Pictures at a noise level without their noise, as a U-Net predicts them.

    Args:
        sampling: ComfyUI's `model_sampling` of the model.
        predict: what the U-Net makes of what it is given (B, c, h, w), and told (B,).
        x: (B, c, h, w).
        sigma: (B,).
    """
    level = sigma[:, None, None, None]
    out = predict(sampling.calculate_input(level, x), sampling.timestep(sigma).float())
    denoised: Tensor = sampling.calculate_denoised(level, out.float(), x)
    return denoised


def plain(tensor: Tensor) -> Tensor:
    """A copy that can be part of a gradient's graph, which what ComfyUI's nodes make cannot."""
    return tensor.detach().clone()


def checkpointed(
    unet: UNetModel,
    x: Tensor,
    timesteps: Tensor,
    context: Tensor | None,
    y: Tensor | None,
    control: None,
    options: Options,
) -> Tensor:
    """What ComfyUI's U-Net computes, keeping for the backward pass only what goes from block to block.

    Of ComfyUI's patches, those inside transformer layers act; they see a block twice, and must not count.

    Args:
        unet: of an image model.
        x: (B, c, h, w).
        timesteps: (B,).
        context: (B, tokens, width); None for a U-Net without text.
        y: (B, width), where the family has it.
        control: none; at its place in ComfyUI's signature.
        options: ComfyUI's transformer_options.
    """
    emb = unet.time_embed(timestep_embedding(timesteps, unet.model_channels).to(x.dtype))
    if y is not None:
        emb = emb + unet.label_emb(y)
    options = {**options, "original_shape": list(x.shape)}

    def through(module: torch.nn.Module, block: Block, h: Tensor, shape: torch.Size | None = None) -> Tensor:
        inside = {**options, "block": block}
        arguments = module, h, emb, context, inside, shape
        return checkpoint(forward_timestep_embed, *arguments, use_reentrant=False, preserve_rng_state=False)

    h, skipped = x, []
    for number, module in enumerate(unet.input_blocks):
        h = through(module, ("input", number), h)
        skipped.append(h)
    if unet.middle_block is not None:
        h = through(unet.middle_block, ("middle", 0), h)
    for number, module in enumerate(unet.output_blocks):
        h = torch.cat([h, skipped.pop()], dim=1)
        h = through(module, ("output", number), h, skipped[-1].shape if skipped else None)
    return unet.out(h.type(x.dtype))


def pass_of(gradient_checkpointing: bool) -> Callable[..., Tensor]:
    """How a U-Net is passed through: by `checkpointed` if so chosen and gradients are needed, else by ComfyUI's own."""
    return checkpointed if gradient_checkpointing and torch.is_grad_enabled() else UNetModel.forward


def differentiable(func: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """An override of ComfyUI's attention with one that has a gradient; not all of them do."""
    return attention_pytorch(q, k, v, *args, **kwargs)
