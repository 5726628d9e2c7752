"""Adapters: a network under the host's management, and its weights with where they come from."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_patcher
import comfy.ops
import torch
from torch import Tensor

from ..checkpoint import check, shapes
from .network import P3SNetwork, initialise

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

PREFIX = "diffusion_model."
SAMPLES = 256  # numbers of a weight that go into the fingerprint


@dataclass(frozen=True)
class Origin:
    """What an adapter was made for.

    Attributes:
        family: the host's name of the base model's family.
        base: fingerprint of the base model.
        vision_width: of the vision encoder's tokens.
        identifier, class_word: how a prompt names the subject.
        prompt: the text it was trained with.
        settings: of the training.
    """

    family: str
    base: str
    vision_width: int
    identifier: str
    class_word: str
    prompt: str
    settings: dict[str, Any]


@dataclass(frozen=True, eq=False)
class TrainedAdapter:
    """A trained subject, independent of any loaded model.

    Attributes:
        weights: of a P3SNetwork.
        origin: what it was made for.
    """

    weights: dict[str, Tensor]
    origin: Origin


def new_adapter(model: ModelPatcher, vision_width: int, seed: int) -> ModelPatcher:
    """An untrained adapter for a model, made of the model's own weights; injected, it changes nothing.

    Args:
        model: SD1.5, SD2 or SDXL.
        vision_width: of the vision encoder's tokens.
        seed: of what has no counterpart in the model.
    """
    network = _network(model, vision_width, dtype=storage_dtype(model), device=model.offload_device)
    initialise(network, unet_weights(model), seed)
    return _managed(model, network)


def for_model(adapter: TrainedAdapter, model: ModelPatcher, family: str) -> ModelPatcher:
    """The network of a trained adapter, to be used with a model; shares the adapter's tensors.

    Args:
        family: the host's name of the model's.

    Raises:
        RuntimeError: it was trained for another family, or its weights do not fit the model.
    """
    origin = adapter.origin
    if origin.family != family:
        raise RuntimeError(
            f"The adapter of '{origin.class_word}' was trained for a {origin.family} model, but this is a {family} "
            "model. Connect a model of that family."
        )
    if origin.base != fingerprint(model):
        logging.getLogger(__name__).warning(
            "The adapter of '%s' was trained with another %s model than this one; the subject may be less alike.",
            origin.class_word,
            family,
        )
    network = _network(model, origin.vision_width, device="meta")
    check(shapes(adapter.weights), shapes(network.state_dict()), f"The adapter of '{origin.class_word}'")
    dtype = storage_dtype(model)
    network.load_state_dict({name: weight.to(dtype) for name, weight in adapter.weights.items()}, assign=True)
    return _managed(model, network)


def trainable(model: ModelPatcher, vision_width: int, seed: int) -> P3SNetwork:
    """The network of an untrained adapter in float32, whose weights take gradients."""
    network = _network(model, vision_width, operations=comfy.ops.manual_cast, dtype=torch.float32, device="cpu")
    initialise(network, unet_weights(model), seed)
    return network.train().requires_grad_(True)


def trained_weights(network: P3SNetwork, model: ModelPatcher) -> dict[str, Tensor]:
    """A copy of a network's weights as they are used with a model, on the CPU."""
    dtype = storage_dtype(model)
    return {name: weight.detach().to("cpu", dtype, copy=True) for name, weight in network.state_dict().items()}


def storage_dtype(model: ModelPatcher) -> torch.dtype:
    """The type of an adapter's weights: the model's own, unless that is a quantised one."""
    dtype = model.model.get_dtype()
    return dtype if dtype in (torch.float16, torch.bfloat16, torch.float32) else torch.float16


def unet_weights(model: ModelPatcher) -> dict[str, Tensor]:
    """The weights of a model's U-Net by their names in it."""
    return {name.removeprefix(PREFIX): weight for name, weight in model.model_state_dict(PREFIX).items()}


def fingerprint(model: ModelPatcher) -> str:
    """Tells U-Nets apart by some numbers of each weight; neither the type they are held in nor a LoRA matters."""
    digest = hashlib.sha256()
    for name, weight in sorted(unet_weights(model).items()):
        # What the host set aside while the model is loaded with a LoRA.
        original = model.backup[PREFIX + name].weight if PREFIX + name in model.backup else weight
        flat = original.detach().flatten()
        chosen = flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].cpu().to(torch.bfloat16)
        digest.update(f"{name} {tuple(original.shape)}".encode())
        digest.update(chosen.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _network(model: ModelPatcher, vision_width: int, operations: Any = None, **placed: Any) -> P3SNetwork:
    base = model.model
    operations = operations or comfy.ops.pick_operations(base.get_dtype(), base.manual_cast_dtype)
    return P3SNetwork(base.model_config.unet_config, vision_width, operations, **placed)


def _managed(model: ModelPatcher, network: P3SNetwork) -> ModelPatcher:
    network.eval().requires_grad_(False)
    return comfy.model_patcher.CoreModelPatcher(
        network, load_device=model.load_device, offload_device=model.offload_device
    )
