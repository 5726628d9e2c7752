"""Sizes, budgets and learning rates of all stages. Budgets are seconds of CPU time of each worker."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STATE = Path(os.environ.get("REFATTENTION_WORLD_STATE", ROOT / ".world"))
# The compact weights of what is trained, for a look before they replace those of the demo
EXPORT = STATE / "export"
# Pictures from here on are never trained on.
HELD_OUT = 10**9


@dataclass(frozen=True)
class Schedule:
    """How a stage runs. The learning rate warms up, stays until `hold`, then falls along a cosine to `final`."""

    seconds: float
    rate: float
    batch: int
    warm_up: int = 60
    hold: float = 0.0
    final: float = 0.02
    average_every: float = 4.0
    report_every: float = 60.0
    ema: float = 0.998


@dataclass(frozen=True)
class VAEConfig:
    """The autoencoder: widths at full, half, quarter and eighth of the picture's size."""

    widths: tuple[int, int, int, int] = (32, 32, 48, 64)
    crop: int = 64
    noise: float = 0.05
    squares: float = 4.0
    edges: float = 0.5
    joint: Schedule = field(default_factory=lambda: Schedule(420, 1.2e-3, 16))
    decoder: Schedule = field(default_factory=lambda: Schedule(600, 8e-4, 16, warm_up=30))


VAE = VAEConfig()
TEXT = Schedule(50, 2e-3, 128, warm_up=100, report_every=20)


@dataclass(frozen=True)
class LatentsConfig:
    """How many pictures are encoded once for the stages after the autoencoder."""

    parts: int = 5
    size: int = 3072


@dataclass(frozen=True)
class BaseConfig:
    """Text to picture. `gamma` bounds the weight at little noise; `unnamed` is the share without a caption."""

    schedule: Schedule = field(default_factory=lambda: Schedule(2400, 9e-4, 24, hold=0.55, final=0.03, average_every=6))
    gamma: float = 5.0
    unnamed: float = 0.1
    guidance: float = 4.0
    sheet_every: float = 200.0
    measure_every: float = 300.0


LATENTS = LatentsConfig()
CLASSIFIER = Schedule(130, 3e-3, 96, report_every=35)
BASE = BaseConfig()
VISION = Schedule(70, 1.5e-3, 6, warm_up=50, report_every=20)
ADAPTER_STATE = STATE / "adapters"


@dataclass(frozen=True)
class Adapter:
    """One training.

    Attributes:
        method: of `tools/train.py`; its settings have the same name.
        start: another adapter that it goes on from.
        data: its data set; "" = of the method's name.
        count: records of its data set.
        changes: of the settings.
    """

    method: str
    start: str = ""
    data: str = ""
    count: int = 3000
    changes: dict[str, Any] = field(default_factory=dict)


_ON = {
    **{"train.steps": 300, "train.learning_rate": 4e-4, "train.schedule": "cosine", "train.warmup": 20},
    **{"save.every": 300, "validate.every": 300},
}
_FLOW = {**_ON, "method.leffa": True, "method.weight": 0.1}


def _quilts(changes: dict[str, Any]) -> Adapter:
    return Adapter("leffa", "leffa", data="quilts", count=400, changes=changes)


ADAPTERS = {
    "leffa": Adapter("leffa"),
    # from there the same number of steps, without and with the loss on attention; with the paper's weight of it, 1e-3,
    # 300 steps are too few to tell the two apart
    "leffa_plain": Adapter("leffa", "leffa", changes=_ON),
    "leffa_flow": Adapter("leffa", "leffa", changes=_FLOW),
    # the same with shirts of which every place looks different
    "quilts_plain": _quilts(_ON),
    "quilts_flow": _quilts(_FLOW),
    # each without one of the paper's choices
    "quilts_tau": _quilts({**_FLOW, "method.temperature": 1.0}),
    "quilts_timesteps": _quilts({**_FLOW, "method.max_timestep": 1000}),
    "quilts_coarse": _quilts({**_FLOW, "method.min_ratio": 0.0}),
    # the same person in another pose
    "poses": Adapter("leffa", "leffa", data="poses", changes={"method.task": "pose_transfer", "train.steps": 600}),
    "deadiff": Adapter("deadiff"),
    # the claims' control: both branches, so tokens in all layers, and no pairs
    "deadiff_reconstructed": Adapter("deadiff", changes={"method.mix": [0, 0, 1], "train.steps": 1500}),
    "refine": Adapter("refine", count=800),
}


def result(name: str) -> Path:
    """The file that a training leaves."""
    return ADAPTER_STATE / name / f"{ADAPTERS[name].method}.safetensors"


# Refine-by-Align's with the layers and the noise level at which it aligns best
CALIBRATED = ADAPTER_STATE / "calibration" / "adapter.safetensors"
