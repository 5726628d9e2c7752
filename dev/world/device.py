"""Where the training runs: on the CPU, or where `REFATTENTION_WORLD_DEVICE` says."""

from __future__ import annotations

import os
import time

import torch
from torch import Tensor

DEVICE = torch.device(os.environ.get("REFATTENTION_WORLD_DEVICE", "cpu"))
IS_CPU = DEVICE.type == "cpu"


def half() -> torch.autocast:
    """Half precision inside networks."""
    return torch.autocast(DEVICE.type, torch.bfloat16)


def pixels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) on the device, in the layout that convolutions are fastest in."""
    return x.to(DEVICE).contiguous(memory_format=torch.channels_last)


def seconds() -> float:
    """What budgets count: this process's CPU time, or the time on the clock while a GPU works."""
    return time.process_time() if IS_CPU else time.monotonic()
