"""Where the training runs: on the CPU, or where `REFATTENTION_WORLD_DEVICE` says."""

from __future__ import annotations

import os
import time
from typing import TypeVar

import torch
from torch import Tensor, nn

DEVICE = torch.device(os.environ.get("REFATTENTION_WORLD_DEVICE", "cpu"))
IS_CPU = DEVICE.type == "cpu"


Model = TypeVar("Model", bound=nn.Module)


def placed(model: Model) -> Model:
    """The model on the device, its weights in the layout that convolutions are fastest in."""
    return model.to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]


def half() -> torch.autocast:
    """Half precision inside networks."""
    return torch.autocast(DEVICE.type, torch.bfloat16)


def pixels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) on the device, in the layout that convolutions are fastest in."""
    return x.to(DEVICE).contiguous(memory_format=torch.channels_last)


def seconds() -> float:
    """What budgets count: this process's CPU time, or the time on the clock while a GPU works."""
    return time.process_time() if IS_CPU else time.monotonic()
