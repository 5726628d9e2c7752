"""Adapters: a network under ComfyUI's management, and its weights with where they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import comfy.ops
import torch
from torch import Tensor

from ..models.base import managed, patched_weights, require_base, storage_dtype
from ..models.checkpoint import check, shapes
from .network import P3SNetwork, initialise
from .settings import BOTH, EMPTY, SAME

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


@dataclass(frozen=True)
class Origin:
    """What an adapter was made for.

    Attributes:
        family: ComfyUI's name of the base model's family.
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

    @property
    def negative(self) -> str:
        """What the negative half of the guidance was trained with: SAME or EMPTY, of the settings."""
        return EMPTY if self.origin.settings.get("dropped") == BOTH else SAME

    @property
    def has_learned_weight(self) -> bool:
        """Whether the weight of the injection was learnt, too."""
        return any(name.startswith("weight.") for name in self.weights)


def new_adapter(model: ModelPatcher, vision_width: int, seed: int) -> ModelPatcher:
    """An untrained adapter for a model, made of the model's own weights with its LoRAs; injected, it changes nothing.

    Args:
        model: SD1.5, SD2 or SDXL.
        vision_width: of the vision encoder's tokens.
        seed: of what has no counterpart in the model.
    """
    make = _maker(model, vision_width)
    network = make(dtype=storage_dtype(model), device=model.offload_device)
    initialise(network, patched_weights(model), seed)
    return managed(model, make, network.state_dict())


def for_model(adapter: TrainedAdapter, model: ModelPatcher, family: str) -> ModelPatcher:
    """The network of a trained adapter, to be used with a model; shares the adapter's tensors.

    Args:
        family: ComfyUI's name of the model's family.

    Raises:
        RuntimeError: it was trained for another family, or its weights do not fit the model.
    """
    origin = adapter.origin
    who = f"The adapter of '{origin.class_word}'"
    require_base(model, family, (origin.family, origin.base), who, "the subject may be less alike")
    make = _maker(model, origin.vision_width, adapter.has_learned_weight)
    check(shapes(adapter.weights), shapes(make(device="meta").state_dict()), who)
    dtype = storage_dtype(model)
    return managed(model, make, {name: weight.to(dtype) for name, weight in adapter.weights.items()})


def trainable(
    model: ModelPatcher, vision_width: int, seed: int, rngr: bool = True, learned_weight: bool = False
) -> P3SNetwork:
    """The network of an untrained adapter in float32, whose weights take gradients.

    Args:
        rngr: False leaves the RNGR encoder out: what it adds to the reference's latent is 0 and stays so.
        learned_weight: whether the weight of the injection is learnt, too.

    Raises:
        RuntimeError: the model's U-Net takes more than the latent.
    """
    channels, latent = model.model.model_config.unet_config["in_channels"], _latent_channels(model)
    if channels != latent:
        raise RuntimeError(
            f"P3S Train needs a U-Net that takes the {latent} channels of a latent, but this one takes {channels}: an "
            "inpainting or instruction model. Train with the checkpoint it was made from; the adapter fits both."
        )
    make = _maker(model, vision_width, learned_weight, comfy.ops.manual_cast)
    network = make(dtype=torch.float32, device="cpu")
    initialise(network, patched_weights(model), seed)
    network.train().requires_grad_(True)
    if not rngr:
        network.encoder.requires_grad_(False)
        torch.nn.init.zeros_(network.encoder.to_v.weight)
    return network


def trained_weights(network: P3SNetwork, model: ModelPatcher) -> dict[str, Tensor]:
    """A copy of a network's weights as they are used with a model, on the CPU."""
    dtype = storage_dtype(model)
    return {name: weight.detach().to("cpu", dtype, copy=True) for name, weight in network.state_dict().items()}


def _maker(
    model: ModelPatcher, vision_width: int, learned_weight: bool = False, operations: Any = None
) -> Callable[..., P3SNetwork]:
    """Makes networks that fit a model, of a dtype and on a device; does not hold the model."""
    base = model.model
    operations = operations or comfy.ops.pick_operations(base.get_dtype(), base.manual_cast_dtype)
    # Of the reference it reads the latent, whatever else the U-Net is given (a mask, say).
    config = {**base.model_config.unet_config, "in_channels": _latent_channels(model)}
    return partial(P3SNetwork, config, vision_width, operations, learned_weight)


def _latent_channels(model: ModelPatcher) -> int:
    channels: int = model.model.latent_format.latent_channels
    return channels
