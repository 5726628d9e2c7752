"""What an adapter needs to know of the base model it is trained for and used with."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

PREFIX = "diffusion_model."
SAMPLES = 256  # numbers of a weight that go into the fingerprint


def storage_dtype(model: ModelPatcher) -> torch.dtype:
    """The type of an adapter's weights: the model's own, unless that is a quantised one."""
    dtype = model.model.get_dtype()
    return dtype if dtype in (torch.float16, torch.bfloat16, torch.float32) else torch.float16


def unet_weights(model: ModelPatcher) -> dict[str, Tensor]:
    """The weights of a model's U-Net by their names in it."""
    return {name.removeprefix(PREFIX): weight for name, weight in model.model_state_dict(PREFIX).items()}


def patched_weights(model: ModelPatcher) -> Callable[[str], Tensor]:
    """Gives the weights of a model's U-Net by their names in it, with the LoRAs that the model carries."""
    # While the model is loaded its weights have them already, and would get them twice.
    comfy.model_management.unload_model_and_clones(model)
    return lambda name: model.patch_weight_to_device(PREFIX + name, model.load_device, return_weight=True)


def fingerprint(model: ModelPatcher) -> str:
    """Tells U-Nets apart by some numbers of each weight; neither the type they are held in nor a LoRA matters."""
    # ComfyUI keeps the weights without the LoRA there while the model is loaded with it.
    kept = {name.removeprefix(PREFIX): each.weight for name, each in model.backup.items()}
    return digest_of({name: kept.get(name, weight) for name, weight in unet_weights(model).items()})


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """Tells weights apart by some numbers of each, whatever the type they are held in."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        flat = weight.detach().flatten()
        chosen = flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].cpu().to(torch.bfloat16)
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(chosen.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def managed(model: ModelPatcher, network: nn.Module) -> ModelPatcher:
    """A network that only infers, loaded and offloaded by ComfyUI as the model is."""
    network.eval().requires_grad_(False)
    return comfy.model_patcher.CoreModelPatcher(
        network, load_device=model.load_device, offload_device=model.offload_device
    )


def require_base(model: ModelPatcher, family: str, trained_for: tuple[str, str], adapter: str, doubt: str) -> None:
    """Checks that an adapter is used with a model like the one it was trained for.

    Args:
        family: ComfyUI's name of the model's family.
        trained_for: that name, and the fingerprint, of the model it was trained for.
        adapter: the subject of the messages, for example "The adapter of 'dog'".
        doubt: what another model of the family may do, for the warning in the log.

    Raises:
        RuntimeError: the adapter was trained for another family.
    """
    if trained_for[0] != family:
        raise RuntimeError(
            f"{adapter} was trained for a {trained_for[0]} model, but this is a {family} model. Connect a model of "
            "that family."
        )
    if trained_for[1] != fingerprint(model):
        logging.getLogger(__name__).warning(
            "%s was trained with another %s model than this one; %s.", adapter, family, doubt
        )
