"""What a method needs in memory beside the model and the pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import comfy.memory_management
import comfy.model_management
import torch
from comfy.controlnet import ControlBase
from torch import Tensor


def shape_with(noise_shape: Sequence[int], latents: Iterable[Tensor]) -> list[int]:
    """Shape of the batch that takes most memory: the pictures, (B, C, ...), or one of the further (R, C, ...).

    They do not pass through the model together.
    """
    each = math.prod(noise_shape[2:])
    passes = [-(-latent[:, 0].numel() // each) for latent in latents]
    return [max([noise_shape[0], *passes]), *noise_shape[1:]]


class Reserved(ControlBase):
    """Bytes that are free when sampling begins; ComfyUI asks ControlNets of conditionings how many they need."""

    def __init__(self, memory: int) -> None:
        super().__init__()
        self._memory = memory

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        """The bytes."""
        return self._memory

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> Reserved:
        """The same for all devices."""
        return self


def has_room(size: int) -> bool:
    """Whether main memory has room for so many bytes, after ComfyUI has dropped old results for them."""
    needed = size + comfy.memory_management.RAM_CACHE_HEADROOM
    comfy.memory_management.extra_ram_release(needed)
    return bool(comfy.model_management.get_free_memory(torch.device("cpu")) >= needed)
