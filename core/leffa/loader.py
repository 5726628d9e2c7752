"""From a checkpoint's weights to models under ComfyUI's memory management."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ..models import checkpoint
from . import layout
from .body_map import METADATA, NEEDED_BY, kind_needed
from .model import LeffaSD15, LeffaSDXL

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class LeffaParts:
    """What a checkpoint holds: both U-Nets, and the VAE unless the file has none."""

    generative: comfy.model_patcher.ModelPatcher
    reference: comfy.model_patcher.ModelPatcher
    vae: comfy.sd.VAE | None


def load(path: str | Path, body_map: str | None = None) -> LeffaParts:
    """Loads a Leffa checkpoint, as published or made slim; its content tells which it is.

    Args:
        path: of the file.
        body_map: the kind of DensePose picture that it was trained with; None to tell it by the file.

    Raises:
        RuntimeError: the file cannot be read, or is no Leffa checkpoint.
    """
    parts = _load(path, body_map)
    for number, patcher in enumerate((parts.generative, parts.reference)):
        # How ComfyUI makes a copy for another device, or for weights that change while it samples
        patcher.cached_patcher_init = (_load_again, (path, body_map, number))
    return parts


def _load_again(
    path: str | Path, body_map: str | None, number: int, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    parts = _load(path, body_map, disable_dynamic)
    return (parts.generative, parts.reference)[number]


def _load(path: str | Path, body_map: str | None, disable_dynamic: bool = False) -> LeffaParts:
    name, weights = Path(path).name, checkpoint.load(path)
    first = weights.get(f"{layout.GENERATIVE}conv_in.weight", torch.empty(0))
    parts = from_state_dict(weights, name, disable_dynamic=disable_dynamic)
    is_sdxl = isinstance(parts.generative.model.model_config, LeffaSDXL)
    said = checkpoint.load_metadata(path).get(METADATA)
    parts.generative.model.body_map = body_map or (said if said in NEEDED_BY else kind_needed(first, is_sdxl, name))
    return parts


def from_state_dict(
    state_dict: Weights, name: str, heads: Mapping[str, int] | None = None, disable_dynamic: bool = False
) -> LeffaParts:
    """Builds the models; takes the weights out of `state_dict`, so that no second copy of them stays behind.

    Args:
        state_dict: the three parts under their prefixes.
        name: of the file, for messages.
        heads: `num_heads` and `num_head_channels`, where they are not those of the family.
        disable_dynamic: as in ComfyUI's loaders.

    Raises:
        RuntimeError: it is no Leffa checkpoint, or not a complete one.
    """
    layout.require_leffa_file(checkpoint.shapes(state_dict), name)
    parts = _split(state_dict)
    generative, reference = (
        _unet(parts[prefix], f"{name} ({prefix[:-1]})", heads or {}, disable_dynamic)
        for prefix in (layout.GENERATIVE, layout.REFERENCE)
    )
    return LeffaParts(generative, reference, _vae(parts[layout.VAE]))


def _vae(weights: Weights) -> comfy.sd.VAE | None:
    if not weights:
        return None
    vae = comfy.sd.VAE(sd=weights)
    vae.throw_exception_if_invalid()
    return vae


def _split(state_dict: Weights) -> dict[str, Weights]:
    """Prefix -> weights by their names without it. Empties `state_dict`."""
    parts: dict[str, Weights] = {prefix: {} for prefix in (layout.GENERATIVE, layout.REFERENCE, layout.VAE)}
    for key in list(state_dict):
        prefix, _, name = key.partition(".")
        parts.setdefault(f"{prefix}.", {})[name] = state_dict.pop(key)
    return parts


def _unet(
    weights: Weights, name: str, heads: Mapping[str, int], disable_dynamic: bool
) -> comfy.model_patcher.ModelPatcher:
    """ComfyUI's `load_diffusion_model_state_dict` for a U-Net that ComfyUI does not know."""
    shapes = checkpoint.shapes(weights)
    unet_config = layout.unet_config(shapes, name)
    config = (LeffaSDXL if unet_config["use_linear_in_transformer"] else LeffaSD15)(unet_config)
    config.unet_config.update(heads)
    dtype = management.unet_dtype(
        model_params=sum(weight.numel() for weight in weights.values()),
        supported_dtypes=config.supported_inference_dtypes,
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    device = management.get_torch_device()
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, config.supported_inference_dtypes))
    model = config.get_model(weights)
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(model, load_device=device, offload_device=management.unet_offload_device())
    _fill(model, patcher.is_dynamic(), weights, shapes, name)
    if device.type == "cpu" and unet_config["in_channels"] != layout.CHANNELS[layout.REFERENCE]:
        # oneDNN's convolutions want this order and would put each picture into it and back; the weights spread it. Not
        # for the reference U-Net: PyTorch's GroupNorm in this order is too inexact for the flat features of zeros.
        model.diffusion_model.to(memory_format=torch.channels_last)
    return patcher


def _fill(model: Any, assign: bool, weights: Weights, shapes: checkpoint.Shapes, name: str) -> None:
    names = layout.to_host(model.model_config.unet_config)
    needed = {key: tuple(value.shape) for key, value in model.diffusion_model.state_dict().items()}
    expected = {theirs: needed[ours] for theirs, ours in names.items() if ours in needed}
    known = comfy.utils.unet_to_diffusers(model.model_config.unet_config)
    checkpoint.check(shapes, expected, name, lambda key: key in known)
    checkpoint.require_floats({key: weights[key] for key in expected}, name)
    model.load_model_weights({names[key]: weights.pop(key) for key in expected}, assign=assign)
