"""Tensors on their way between main memory and a device, by ComfyUI's rules and within its budget of pinned memory."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from typing import TypeVar

import comfy.model_management as management
import torch
from torch import Tensor

Result = TypeVar("Result")


def kept_tensor(tensor: Tensor, is_half: bool = False) -> Tensor:
    """A tensor in main memory, without anything else that shares its memory; in float16 where that takes less.

    From a device it comes without that the program waits for it, if ComfyUI can pin the memory. So the CPU may read it
    only after it has waited for something that the device does later: the picture, say.
    """
    dtype = torch.float16 if is_half and tensor.element_size() > 2 else tensor.dtype
    if tensor.device.type == "cpu":
        kept = tensor.to(dtype)
        is_part = kept.untyped_storage().nbytes() != kept.nbytes
        return kept.clone(memory_format=torch.contiguous_format) if is_part else kept
    kept = torch.empty(tensor.shape, dtype=dtype)
    is_async = _pin(kept) and management.device_supports_non_blocking(tensor.device)
    return kept.copy_(tensor.to(dtype), non_blocking=is_async)  # converted where it is fast, and before the bus


class Arriving:
    """Tensors on their way to a device, at the side of what it computes.

    Args:
        tensors: those that are there already stay as they are.
        device: where to.
    """

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        self._device = device
        self.is_moving = any(tensor.device != device for tensor in tensors)
        self._stream = management.get_offload_stream(device) if self.is_moving else None
        if self._stream is not None:
            # Behind what is asked of the device so far: it may still be writing what is to be brought.
            self._stream.wait_stream(management.current_stream(device))
        is_async = management.device_supports_non_blocking(device)
        self._tensors = [
            management.cast_to(tensor, device=device, non_blocking=is_async, stream=self._stream) for tensor in tensors
        ]

    def tensors(self) -> list[Tensor]:
        """They, for what the device computes from now on."""
        if self._stream is not None:
            management.sync_stream(self._device, self._stream)
            for tensor in self._tensors:
                tensor.record_stream(management.current_stream(self._device))
        return self._tensors


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    """What a function gives, and the seconds until the device has it; to measure is to wait."""
    management.synchronize()
    start = time.perf_counter()
    result = function()
    management.synchronize()
    return result, time.perf_counter() - start


def _pin(tensor: Tensor) -> bool:
    """Pins a tensor's memory for as long as it lives, if ComfyUI's budget has room without displacing weights."""
    if management.TOTAL_PINNED_MEMORY + tensor.nbytes > management.MAX_PINNED_MEMORY:
        return False
    if not management.pin_memory(tensor):
        return False
    # The alias keeps the memory until ComfyUI has let go of it.
    weakref.finalize(tensor, _unpin, tensor.data).atexit = False
    return True


def _unpin(tensor: Tensor) -> None:
    management.synchronize()  # a copy may still be under way
    management.unpin_memory(tensor)
