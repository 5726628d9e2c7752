"""The loop that the smaller stages share: steps until the budget is spent, with checkpoints to go on from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from . import state
from .config import STATE, Schedule
from .workers import Clock, Worker


@dataclass(frozen=True)
class Stage:
    """One stage of the training.

    Attributes:
        name: of its checkpoint and its learning curve.
        model: what the checkpoint holds.
        loss: makes a batch and returns its loss.
        report: adds to the learning curve, given the seconds used and the smoothed loss.
        trained: the part of the model that is trained, if not all.
        phase: tells stages apart that train the same model one after another.
    """

    name: str
    schedule: Schedule
    model: nn.Module
    loss: Callable[[], Tensor]
    report: Callable[[float, float], None]
    trained: nn.Module | None = None
    phase: str = "only"


def checkpoint(name: str) -> Path:
    """Where a stage keeps its model."""
    return STATE / f"{name}.pt"


def curve(name: str) -> Path:
    """Where a stage keeps its learning curve."""
    return STATE / "curves" / f"{name}.jsonl"


def train(worker: Worker, stage: Stage) -> None:
    """Trains what is left of the stage's budget."""
    path = checkpoint(stage.name)
    saved = state.load(path) or {"used": {}}
    if "model" in saved:
        stage.model.load_state_dict(saved["model"])
    clock = Clock(worker, stage.schedule, saved["used"].get(stage.phase, 0.0))
    if clock.is_over:
        return
    weights = list((stage.trained or stage.model).parameters())
    averaged = [*weights, *(buffer for buffer in stage.model.buffers() if buffer.is_floating_point())]
    optimiser = torch.optim.AdamW(weights, lr=0.0, betas=(0.9, 0.98), weight_decay=1e-3)
    if saved.get("phase") == stage.phase:
        optimiser.load_state_dict(saved["optimiser"])
    reported, smooth = clock.used, 0.0
    while not clock.is_over:
        for group in optimiser.param_groups:
            group["lr"] = clock.rate()
        loss = stage.loss()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        smooth = 0.98 * smooth + 0.02 * loss.item() if smooth else loss.item()
        if not clock.meet(averaged) or not worker.leads:
            continue
        if clock.is_over or clock.used - reported > stage.schedule.report_every:
            reported = clock.used
            used = {**saved["used"], stage.phase: clock.used}
            content = {"model": stage.model.state_dict(), "optimiser": optimiser.state_dict()}
            state.save(path, {**content, "phase": stage.phase, "used": used})
            stage.report(clock.used, smooth)


def trained(name: str) -> dict[str, Tensor]:
    """The weights of a stage.

    Raises:
        FileNotFoundError: it has not run yet.
    """
    saved = state.load(checkpoint(name))
    if saved is None:
        raise FileNotFoundError(f"There is no {checkpoint(name)} yet: run `make world-train`.")
    return saved["model"]
