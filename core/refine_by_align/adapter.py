"""Adapters: the network that makes tokens, and the cross-attentions that were trained to read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import comfy.ops
import torch
from torch import Tensor

from ..models.base import PREFIX, managed, require_base, storage_dtype, unet_weights
from ..models.checkpoint import check, shapes
from ..patches.blocks import is_cross_attention
from ..patches.unet import trained_size
from .network import PatchTokens, initialise

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

TOKENS, UNET = "tokens.", "unet."  # the two parts of an adapter's weights


@dataclass(frozen=True)
class Origin:
    """What an adapter was made for.

    Attributes:
        family: ComfyUI's name of the base model's family.
        base: fingerprint of the base model.
        vision_width: of the vision encoder's tokens.
        image_size: side of the square that the vision encoder reads, in pixels.
        settings: of the training.
        look: the `timesteps` and `layers` at which it aligns best, as calibration found them; empty = not calibrated.
    """

    family: str
    base: str
    vision_width: int
    image_size: int
    settings: dict[str, Any]
    look: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Longer side of the pictures that it was trained with, in pixels; 0 where the file does not say."""
        sides = [self.settings.get(name) for name in ("height", "width")]
        return max((side for side in sides if isinstance(side, int) and side > 0), default=0)


@dataclass(frozen=True, eq=False)
class TrainedAdapter:
    """A trained adapter, independent of any loaded model.

    Attributes:
        weights: of a PatchTokens ("tokens."), and of the U-Net's cross-attentions ("unet.").
        origin: what it was made for.
    """

    weights: dict[str, Tensor]
    origin: Origin


def size_in_training(model: ModelPatcher, adapter: TrainedAdapter | None) -> int:
    """Longer side in pixels of the pictures that a model was trained with, or an adapter for it."""
    return (adapter and adapter.origin.size) or trained_size(model)


def new_network(model: ModelPatcher, vision_width: int, seed: int) -> PatchTokens:
    """The network of an untrained adapter in float32, whose weights take gradients."""
    network = _maker(model, vision_width)(dtype=torch.float32, device="cpu")
    initialise(network, seed)
    return network.train().requires_grad_(True)


def trained_weights(network: PatchTokens, unet: Mapping[str, Tensor], model: ModelPatcher) -> dict[str, Tensor]:
    """A copy of an adapter's weights as they are used with a model, on the CPU.

    Args:
        unet: state dict of the U-Net it was trained with.
    """
    dtype = storage_dtype(model)
    parts = {TOKENS + name: weight for name, weight in network.state_dict().items()}
    parts |= {UNET + name: weight for name, weight in unet.items() if is_cross_attention(name)}
    return {name: weight.detach().to("cpu", dtype, copy=True) for name, weight in parts.items()}


def for_model(adapter: TrainedAdapter, model: ModelPatcher, family: str) -> tuple[ModelPatcher, ModelPatcher]:
    """A clone of the model with the adapter's cross-attentions, and the network that makes the tokens for it.

    ComfyUI puts the weights in when it loads the clone, as it does with a LoRA, and takes them out for the model.

    Args:
        family: ComfyUI's name of the model's family.

    Raises:
        RuntimeError: it was trained for another family, or its weights do not fit the model.
    """
    origin = adapter.origin
    require_base(model, family, (origin.family, origin.base), "The adapter", "it may find and repair less well")
    make = _maker(model, origin.vision_width)
    expected = {TOKENS + name: shape for name, shape in shapes(make(device="meta").state_dict()).items()}
    expected |= {UNET + name: shape for name, shape in shapes(unet_weights(model)).items() if is_cross_attention(name)}
    check(shapes(adapter.weights), expected, "The adapter")
    dtype = storage_dtype(model)
    tokens = {name: weight.to(dtype) for name, weight in _part(adapter, TOKENS).items()}
    patched = model.clone()
    patched.add_patches({PREFIX + name: ("set", (weight,)) for name, weight in _part(adapter, UNET).items()})
    return patched, managed(model, make, tokens)


def _maker(model: ModelPatcher, vision_width: int) -> Callable[..., PatchTokens]:
    width = model.model.model_config.unet_config["context_dim"]
    return partial(PatchTokens, vision_width, width, comfy.ops.manual_cast)


def _part(adapter: TrainedAdapter, prefix: str) -> dict[str, Tensor]:
    weights = adapter.weights.items()
    return {name.removeprefix(prefix): weight for name, weight in weights if name.startswith(prefix)}
