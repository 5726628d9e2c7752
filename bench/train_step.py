"""A step of the trainer over the same step written plainly in torch: what loop, batches and bookkeeping cost."""

from __future__ import annotations

import tempfile
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from overfitting import METHODS, config_of, configured, small_eyes, task_of
from timing import alternate
from training.loop import Loop, accelerator_of, optimizer_of


def rows(repeats: int) -> dict[str, dict[str, Any]]:
    """The demo's world at 64 x 64 pixels, two pictures to a step."""
    with tempfile.TemporaryDirectory() as folder, small_eyes():
        return {f"train.step.{method}": _row(method, Path(folder) / method, repeats) for method in METHODS}


def _row(method: str, folder: Path, repeats: int) -> dict[str, Any]:
    folder.mkdir()
    config = config_of(method, configured(method, folder, height=64, width=64, batch_size=2))
    accelerator, task = accelerator_of(config, cpu=True), task_of(method, config)
    train, samples = config.phases[0].train, [task.sample((number, number, 0)) for number in range(2)]
    loop = Loop(task, config, accelerator)
    loop._begin(resume=False)
    learning = [weight for weight in task.objective.parameters() if weight.requires_grad]
    plain = optimizer_of(train, learning)
    model, prepared = accelerator.prepare(task.objective, optimizer_of(train, learning))
    batches = chain.from_iterable(repeat([samples]))

    def trainer() -> None:
        loop._note(0, loop._step(model, prepared, train, batches))

    def torch_alone() -> None:
        loss = task.objective(task.batch(samples))["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, train.clip)
        plain.step()
        plain.zero_grad()
        loss.item()

    found = alternate(torch_alone, trainer, 4 * repeats)
    detail = {"what": "a step of the trainer over the same in plain torch", **found.detail()}
    return {"value": round(found.ratio, 4), "unit": "x", "bound": 1.05, "detail": detail}
