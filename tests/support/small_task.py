"""A task of a few numbers for the trainer's loop, which ends its process by SIGKILL where it is told."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bootstrap

if "refattention" not in sys.modules:
    bootstrap.name_packages()
    sys.path.insert(0, str(bootstrap.ROOT / "tools"))

import torch
import torch._dynamo  # as the next, what the loop would load otherwise, in each of the processes that are forked
import transformers.optimization  # noqa: F401
from safetensors.torch import save_file
from torch import Tensor, nn
from training.config import Config, Phase, build
from training.loop import Loop, accelerator_of
from training.plan import Key, Plan, generator_of

WIDTH = 6


@dataclass(frozen=True)
class Method:
    """What `[method]` and `[data]` may hold: nothing."""


class Objective(nn.Module):
    """Learns a linear map; the second layer takes part only in samples of even records."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        with torch.no_grad():
            for number, weight in enumerate(self.parameters()):
                weight.copy_(torch.randn(weight.shape, generator=generator_of(number)))
        self.calls = 0

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        die_if("step", self.calls)
        x, even = batch
        out = self.first(x)
        if even.any():
            rows = torch.nonzero(even).flatten()
            out = out.index_add(0, rows, self.second(out[rows]))
        return {"loss": (self.frozen(out) - x).square().mean()}


class SmallTask:
    """Records are numbers."""

    name, records, digest = "small", 7, "none"

    def __init__(self) -> None:
        self.objective = Objective()
        self.saves = 0

    def begin(self, phase: Phase) -> None: ...

    def plan(self, step_size: int, seed: int) -> Plan:
        return Plan([range(self.records)], [1], [], step_size, seed)

    def sample(self, key: Key, drops: bool = True) -> tuple[Tensor, bool]:
        return torch.randn(WIDTH, generator=generator_of(key[1])), key[0] % 2 == 0

    def batch(self, samples: Sequence[Any]) -> tuple[Tensor, Tensor]:
        return torch.stack([x for x, _ in samples]), torch.tensor([even for _, even in samples])

    def save(self, path: Path, dtype: torch.dtype) -> None:
        self.saves += 1
        die_if("save", self.saves)
        save_file({name: each.detach().to(dtype) for name, each in self.objective.state_dict().items()}, path)

    def shown(self, batch: Any) -> list[Any]:
        return [[("x", torch.zeros(4, 4, 3))]]

    def painted(self, batch: Any, steps: int) -> list[Tensor]:
        return [torch.zeros(4, 4, 3)]


def die_if(place: str, count: int) -> None:
    """Ends the process if it was told to do so the count-th time it comes to a place."""
    if os.environ.get("DIE_AT") == f"{place} {count}":
        os.kill(os.getpid(), signal.SIGKILL)


def config(output: Path, **tables: Any) -> Config:
    """Settings of a short run."""
    train = {"steps": 6, "batch_size": 2, "learning_rate": 0.05, "warmup": 2, **tables.pop("train", {})}
    table = {"output": str(output), "trackers": [], "validate": {"every": 0}, "save": {"every": 2}, **tables}
    return build({**table, "train": train}, output.parent, Method, Method, {})


def run(settings: Config, resume: bool = False) -> Loop:
    """Trains in this process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    loop = Loop(SmallTask(), settings, accelerator_of(settings, cpu=True))
    loop.run(resume)
    return loop


def averaged(output: str, resume: bool = False, die_at: str = "", rank: int | None = None) -> None:
    """A run with a running mean and two batches to a step; with a rank, as one of two processes of a launcher."""
    os.environ["DIE_AT"] = die_at
    if rank is not None:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getppid() % 10000)}
        os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    torch.set_num_threads(1)
    run(config(Path(output), train={"ema": 0.9, "accumulate": 2}), resume)
