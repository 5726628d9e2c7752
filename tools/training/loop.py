"""The loop that all methods are trained by, on Hugging Face Accelerate."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import math
import platform
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from refattention.core.pictures.grid import to_pillow
from refattention.core.pictures.sheet import Cell, labelled_sheet
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm

from .config import Config, Phase, Train
from .folder import FolderError, RunFolder
from .plan import Key, Plan, seed_of

LIBRARIES = ("torch", "torchvision", "accelerate", "transformers", "safetensors", "numpy", "pillow")
CELL = (256, 256)  # of the sheets, in pixels
Lines = list[list[Cell]]


class Task(Protocol):
    """A method, with the user's models and data.

    Attributes:
        name: of the method.
        objective: called with a batch, gives its losses as scalars; the one called "loss" is minimised. Its weights
            that take gradients are what learns.
        records: how many there are.
        digest: of the data.
    """

    name: str
    objective: nn.Module
    records: int
    digest: str

    def begin(self, phase: Phase) -> None:
        """Takes on the settings of a phase."""

    def plan(self, step_size: int, seed: int) -> Plan:
        """Which records make up the steps."""

    def sample(self, key: Key, drops: bool = True) -> Any:
        """Reads a record's files and draws what is drawn for it; runs in workers.

        Args:
            drops: whether conditions may be left out, as in training.
        """

    def batch(self, samples: Sequence[Any]) -> Any:
        """What the objective takes; the frozen encoders run here."""

    def save(self, path: Any, dtype: torch.dtype) -> None:
        """Writes a file that the method's loader node takes."""

    def shown(self, batch: Any) -> Lines:
        """A batch as labelled pictures, a line for each sample."""

    def painted(self, batch: Any, steps: int) -> Iterable[Tensor]:
        """What the model makes of each sample of a batch, (H, W, 3) in [0, 1]."""


def accelerator_of(config: Config, cpu: bool) -> Accelerator:
    """Accelerate, as the configuration wants it.

    Raises:
        FolderError: the phases do not go together, or a tracker is not installed.
    """
    precisions = {phase.train.precision for phase in config.phases}
    if len(precisions) > 1:
        raise FolderError(f"The phases have different precisions ({', '.join(sorted(precisions))}). Give them one.")
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=precisions.pop(),
        log_with=list(config.common.trackers) or None,
        project_dir=str(config.output),
        # A batch may leave a branch out, as DEADiff's do.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    # Accelerate goes on without those.
    if missing := set(config.common.trackers) - {str(each) for each in accelerator.log_with} - {"all"}:
        names = ", ".join(sorted(missing))
        raise FolderError(f"trackers names {names}, not installed here. Install it, or leave it out.")
    return accelerator


def dry_run(task: Task, config: Config) -> Lines:
    """The first batch as it would be learnt from."""
    phase = config.phases[0]
    task.begin(phase)
    plan = task.plan(phase.train.batch_size, seed_of(config.common.seed, "phase", 0))
    return task.shown(task.batch([task.sample(key) for key in plan.keys(0)]))


def write_sheet(folder: RunFolder, name: str, lines: Lines) -> None:
    """Writes labelled pictures as one PNG."""
    sheet = to_pillow(labelled_sheet(lines, CELL)[0])
    folder.write(name, lambda path: sheet.save(path))


class Loop:
    """One run.

    Args:
        accelerator: of this process.
    """

    def __init__(self, task: Task, config: Config, accelerator: Accelerator) -> None:
        self._task, self._config, self._accelerator = task, config, accelerator
        self._folder = RunFolder(config.output, task.name)
        self._trained = {name: each for name, each in task.objective.named_parameters() if each.requires_grad}
        self._mean: dict[str, Tensor] = {}
        self.is_stopped = False
        self._total = 0  # steps done in all phases

    def run(self, resume: bool) -> None:
        """Trains through all phases.

        Raises:
            RuntimeError: the loss is not a number any more, or nothing can be saved.
        """
        main = self._accelerator.is_main_process
        state = self._begin(resume)
        if state:
            self._put(state["trained"])
        first = state["phase"] if state else 0
        self._total = state["total"] if state else 0
        if main:
            self._folder.keep_losses(self._total)
        self._accelerator.init_trackers("logs")
        with self._interruptible():
            for number, phase in enumerate(self._config.phases):
                if number >= first and not self.is_stopped:
                    self._phase(number, phase, state if number == first else None)
        self._accelerator.end_training()
        if main and not self.is_stopped:
            done = self._folder.write(f"{self._task.name}.safetensors", self._write_adapter)
            print(f"Trained {self._total} steps: {done}")

    def _begin(self, resume: bool) -> dict[str, Any] | None:
        """On the main process first, which writes what the others read."""
        about = self._about()
        with self._accelerator.main_process_first():
            if self._accelerator.is_main_process:
                return self._folder.begin(about, resume)
            return self._folder.newest() if resume else None

    def _about(self) -> dict[str, Any]:
        versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
        return {
            "method": self._task.name,
            "config": self._config.text,
            "command": sys.argv,
            "versions": {"python": platform.python_version(), **versions},
            "processes": self._accelerator.num_processes,
            "device": str(self._accelerator.device),
            "records": self._task.records,
            "data_digest": self._task.digest,
            "trained_parameters": sum(each.numel() for each in self._trained.values()),
            "trained": sorted(self._trained),
        }

    def _phase(self, number: int, phase: Phase, state: dict[str, Any] | None) -> None:
        from transformers import get_scheduler

        train, accelerator = phase.train, self._accelerator
        self._task.begin(phase)
        optimizer = optimizer_of(train, list(self._trained.values()))
        scheduler = get_scheduler(train.schedule, optimizer, train.warmup, train.steps)
        accelerator.free_memory()  # what it knows of the phase before
        model, prepared = accelerator.prepare(self._task.objective, optimizer)
        done = 0
        if state:
            done = state["step"]
            prepared.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(state["scaler"])
        self._begin_mean(train, state)
        batches = iter(self._batches(number, train, done))
        bar = tqdm(
            total=train.steps, initial=done, desc=f"phase {number + 1}", disable=not accelerator.is_main_process or None
        )
        while done < train.steps and not self.is_stopped:
            values = self._step(model, prepared, train, batches)
            scheduler.step()
            done, self._total = done + 1, self._total + 1
            self._update_mean(train)
            values["learning_rate"] = scheduler.get_last_lr()[0]
            self._note(number, values)
            bar.update(1)
            bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
            is_last = done == train.steps
            if accelerator.is_main_process:
                if self._is_due(self._config.save.every) or is_last or self.is_stopped:
                    self._save(number, done, prepared, scheduler)
                if self._is_due(self._config.validate.every) or (is_last and self._config.validate.every):
                    self._validate(phase)
        bar.close()
        if self.is_stopped and accelerator.is_main_process:
            print(f"Stopped after {self._total} steps; --resume goes on from there.")

    def _batches(self, number: int, train: Train, done: int) -> Iterator[list[Any]]:
        """The samples of this process's batches, from a step on."""
        accelerator = self._accelerator
        size = train.batch_size * accelerator.num_processes * train.accumulate
        plan = self._task.plan(size, seed_of(self._config.common.seed, "phase", number))
        share = Share(plan, train, done, accelerator.process_index, accelerator.num_processes)
        loader = DataLoader(
            Samples(self._task),
            batch_sampler=share,
            num_workers=train.workers,
            collate_fn=list,
            generator=torch.Generator().manual_seed(0),
        )
        return iter(loader)

    def _step(self, model: nn.Module, optimizer: Any, train: Train, batches: Iterator[list[Any]]) -> dict[str, float]:
        """One step of the optimiser; returns the losses, means over all processes."""
        accelerator, sums = self._accelerator, dict[str, Tensor]()
        for part in range(train.accumulate):
            batch = self._task.batch(next(batches))
            is_last = part == train.accumulate - 1
            with contextlib.nullcontext() if is_last else accelerator.no_sync(model):
                with accelerator.autocast():
                    losses = model(batch)
                accelerator.backward(losses["loss"] / train.accumulate)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / train.accumulate
        parameters = list(self._trained.values())
        norm = accelerator.clip_grad_norm_(parameters, train.clip or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        stopped = torch.tensor(float(self.is_stopped), device=accelerator.device)
        means = accelerator.reduce(torch.stack([*sums.values(), stopped]), "mean").tolist()
        self.is_stopped = means.pop() > 0  # all processes together, or they would wait for each other
        values = dict(zip(sums, means, strict=True))
        if not all(map(math.isfinite, values.values())):
            raise RuntimeError(
                f"Training diverged in step {self._total + 1}: the losses are {values}. Go on by --resume with a lower "
                "learning_rate."
            )
        return {**values, "gradient": float(norm)}

    def _note(self, phase: int, values: dict[str, float]) -> None:
        self._accelerator.log(values, step=self._total)
        if self._accelerator.is_main_process:
            self._folder.add_losses({"step": self._total, "phase": phase + 1, **values})

    def _is_due(self, every: int) -> bool:
        return every > 0 and self._total % every == 0

    def _save(self, phase: int, done: int, optimizer: Any, scheduler: Any) -> None:
        scaler = self._accelerator.scaler
        state = {
            "phase": phase,
            "step": done,
            "total": self._total,
            "trained": {name: weight.detach().cpu() for name, weight in self._trained.items()},
            "mean": self._mean,
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
        }
        self._folder.save(self._total, self._config.save.keep, self._write_adapter, state)

    def _write_adapter(self, path: Path) -> None:
        with self._averaged():
            self._task.save(path, getattr(torch, self._config.save.dtype))

    def _validate(self, phase: Phase) -> None:
        """A sheet of what the model paints now, of the same records each time."""
        settings = self._config.validate
        count = min(settings.pictures, self._task.records)
        seeds = [seed_of(self._config.common.seed, "validate", number) for number in range(count)]
        lines: Lines = []
        with self._averaged(), torch.no_grad():
            for record, seed in enumerate(seeds):
                batch = self._task.batch([self._task.sample((record, seed, seed), drops=False)])
                cells = zip(self._task.shown(batch), self._task.painted(batch, settings.steps), strict=True)
                lines += [[*given, ("painted", picture)] for given, picture in cells]
        write_sheet(self._folder, f"validation-{self._total:06}.png", lines)

    def _begin_mean(self, train: Train, state: dict[str, Any] | None) -> None:
        if not train.ema:
            self._mean = {}
        elif state and state["mean"]:
            self._mean = {name: each.to(self._trained[name].device) for name, each in state["mean"].items()}
        elif not self._mean:
            self._mean = {name: weight.detach().clone() for name, weight in self._trained.items()}

    def _update_mean(self, train: Train) -> None:
        if train.ema:
            update = get_ema_multi_avg_fn(train.ema)
            update(list(self._mean.values()), [each.detach() for each in self._trained.values()], self._total)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """The running mean, if there is one, in the place of the weights."""
        kept = {name: self._trained[name].detach().clone() for name in self._mean}
        self._put(self._mean)
        try:
            yield
        finally:
            self._put(kept)

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        """Copies values into the weights that learn."""
        with torch.no_grad():
            for name, weight in weights.items():
                self._trained[name].copy_(weight)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C and a scheduler's SIGTERM end the run after the step that is under way."""

        def stop(*_: object) -> None:
            self.is_stopped = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Samples(Dataset[Any]):
    """A task's samples by their keys."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __getitem__(self, key: Key) -> Any:
        """Reads one."""
        return self._task.sample(key)


class Share(Sampler[list[Key]]):
    """This process's share of each step, batch by batch: with more processes or batches to a step, the same samples.

    Args:
        done: steps that are not done again.
    """

    def __init__(self, plan: Plan, train: Train, done: int, process: int, processes: int) -> None:
        self._plan, self._train, self._done = plan, train, done
        self._process, self._processes = process, processes

    def __iter__(self) -> Iterator[list[Key]]:
        """Keys of the batches."""
        size = self._train.batch_size
        for step in range(self._done, self._train.steps):
            keys = self._plan.keys(step)
            for part in range(self._train.accumulate):
                start = (part * self._processes + self._process) * size
                yield keys[start : start + size]

    def __len__(self) -> int:
        """How many there are."""
        return (self._train.steps - self._done) * self._train.accumulate


def optimizer_of(train: Train, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of a phase.

    Raises:
        FolderError: it is unknown or not installed.
    """
    rate, decay = train.learning_rate, train.weight_decay
    if train.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    if train.optimizer == "adafactor":
        return torch.optim.Adafactor(parameters, lr=rate, weight_decay=decay)
    if train.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise FolderError("[train] optimizer adamw8bit needs the package bitsandbytes. Install it.") from error
        return AdamW8bit(parameters, lr=rate, weight_decay=decay)
    raise FolderError(f"[train] optimizer is '{train.optimizer}', but must be adamw, adafactor or adamw8bit.")


def settings_of(phase: Phase) -> dict[str, Any]:
    """A phase's settings as an adapter's file keeps them."""
    return {**dataclasses.asdict(phase.train), **dataclasses.asdict(phase.method)}
