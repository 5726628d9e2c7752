"""A step of the trainer over the same step written plainly in torch: what loop, batches and bookkeeping cost."""

from __future__ import annotations

import tempfile
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from people import leffa_config
from timing import alternate
from training.config import build, read
from training.loop import Loop, accelerator_of, optimizer_of


def rows(repeats: int) -> dict[str, dict[str, Any]]:
    """Leffa's two U-Nets at demo size, two persons of 48 x 64 pixels to a step."""
    with tempfile.TemporaryDirectory() as folder:
        return {"train.step.leffa": _row(Path(folder), repeats)}


def _row(folder: Path, repeats: int) -> dict[str, Any]:
    from refattention_demo.configs import register
    from training.tasks import leffa

    register()
    table = read(leffa_config(folder), [])
    config = build(table, folder, leffa.Data, leffa.Options, leffa.DEFAULTS)
    accelerator, task = accelerator_of(config, cpu=True), leffa.Task(config)
    train, samples = config.phases[0].train, [task.sample((number, number, 0)) for number in range(2)]
    task.begin(config.phases[0])
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
