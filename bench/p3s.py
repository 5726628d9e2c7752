"""P3S with an adapter: a step's time over that of a plain step, and the memory that training takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from models import random_model
from refattention.core.p3s.adapter import new_adapter
from refattention.core.p3s.settings import Adapter, P3SSettings
from refattention.core.p3s.wrappers import apply_p3s
from refattention.core.patches.reference_pass import Reference
from steps import step_row

VISION = 257, 1024  # tokens of CLIP ViT-L/14 and their width
GIB = 2**30


def rows(sizes: list[int], dtype: torch.dtype, repeats: int) -> dict[str, dict[str, Any]]:
    """One row per picture size; full-size SD1.5 with random weights, the reference has the size of the picture."""
    model = random_model("sd15", dtype)
    return {f"p3s.step.{pixels}": _row(model, pixels, repeats) for pixels in sizes}


def _row(model: Any, pixels: int, repeats: int) -> dict[str, Any]:
    samples = torch.randn(1, 4, pixels // 8, pixels // 8, generator=torch.Generator().manual_seed(4))
    patched = apply_p3s(model, P3SSettings(Reference(samples, None, 0), trained_adapter(model)))
    return step_row(model, patched, "sd15", pixels, repeats, "an adapter")


def trained_adapter(model: Any) -> Adapter:
    """A full-size adapter whose zero convolutions hold something, as after a training: zeros would be left out."""
    generator = torch.Generator().manual_seed(4)
    network = new_adapter(model, VISION[1], seed=0)
    for name, weight in network.model.state_dict().items():
        if "zero" in name:
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1 * weight.shape[0] ** -0.5)
    return Adapter(network, torch.randn(1, *VISION, generator=generator))


def memory() -> dict[str, dict[str, Any]]:
    """Most resident memory of a process that makes one optimiser step."""
    command = [sys.executable, str(Path(__file__).with_name("p3s_memory.py"))]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    detail = {"what": "one optimiser step at 512 x 512, bfloat16 and float32, gradient checkpointing", **answer}
    row = {"value": round(answer["peak"] / GIB, 2), "unit": "GiB", "bound": 20.0, "detail": detail}
    return {"p3s.train.rss.512": row}
