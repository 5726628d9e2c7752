"""A training's configuration: a TOML file, values of `--set` over it, and defaults below both."""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
Table = dict[str, Any]


class ConfigError(ValueError):
    """One sentence on what is wrong with a configuration."""


@dataclass(frozen=True)
class Models:
    """`[models]`: files, or names as ComfyUI's own loaders list them.

    Attributes:
        checkpoint: the base model, with its VAE and text encoder.
        vae: instead of the checkpoint's.
        clip_vision: vision encoder, for the methods that read pictures with one.
        start: a trained file of the method to go on from.
        extensions: Python files that are run first, for models that ComfyUI does not know by itself.
    """

    checkpoint: str = ""
    vae: str = ""
    clip_vision: str = ""
    start: str = ""
    extensions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Train:
    """`[train]`, and what a `[[phase]]` may change of it.

    Attributes:
        steps: of the optimiser.
        batch_size: samples of one process at a time.
        accumulate: how many such batches of each process make a step.
        height, width: of the pictures, in pixels; multiples of 8.
        learning_rate, weight_decay: of the optimiser.
        optimizer: adamw, adafactor (two thirds less memory), or adamw8bit (bitsandbytes has to be installed).
        schedule: of the learning rate, by a name that transformers' get_scheduler knows.
        warmup: steps in which the learning rate rises to its full value.
        clip: largest norm of a step's gradient; 0 = any.
        ema: decay of the running mean of the weights, which is then what is saved; 0 = none.
        precision: no (float32), bf16 or fp16, of computing; what is learnt stays in float32.
        gradient_checkpointing: computes blocks anew for their gradients instead of keeping what is in them.
        workers: processes that read pictures ahead; 0 = none.
    """

    steps: int = 1000
    batch_size: int = 1
    accumulate: int = 1
    height: int = 512
    width: int = 512
    learning_rate: float = 1e-5
    weight_decay: float = 1e-2
    optimizer: str = "adamw"
    schedule: str = "constant_with_warmup"
    warmup: int = 0
    clip: float = 1.0
    ema: float = 0.0
    precision: str = "no"
    gradient_checkpointing: bool = True
    workers: int = 0


@dataclass(frozen=True)
class Save:
    """`[save]`.

    Attributes:
        every: steps from one checkpoint to the next.
        keep: how many of them are kept; 0 = all.
        dtype: of the weights in the files: float16, bfloat16 or float32.
    """

    every: int = 500
    keep: int = 3
    dtype: str = "float16"


@dataclass(frozen=True)
class Validate:
    """`[validate]`.

    Attributes:
        every: steps from one sheet of pictures to the next; 0 = none.
        pictures: how many.
        steps: of the sampler.
    """

    every: int = 500
    pictures: int = 4
    steps: int = 20


@dataclass(frozen=True)
class Common:
    """What stands above all tables.

    Attributes:
        output: folder of the run.
        seed: of all that is drawn.
        trackers: names that Accelerate knows; "tensorboard", "wandb".
        allow_bad: part of the records that may be left out because their files are bad.
    """

    output: str
    seed: int = 0
    trackers: tuple[str, ...] = ("tensorboard",)
    allow_bad: float = 0.0


@dataclass(frozen=True)
class Phase:
    """A stretch of the training with settings of its own.

    Attributes:
        method: settings of the method, of its own class.
    """

    train: Train
    method: Any


@dataclass(frozen=True)
class Config:
    """All of a training's settings.

    Attributes:
        data: of the method's own class.
        folder: that relative paths start from.
        text: the whole configuration as it was read, for the run's folder.
    """

    common: Common
    models: Models
    data: Any
    save: Save
    validate: Validate
    phases: tuple[Phase, ...]
    folder: Path
    text: Table = field(repr=False)

    @property
    def output(self) -> Path:
        """Folder of the run."""
        return self.path(self.common.output)

    def path(self, name: str) -> Path:
        """A path of the configuration."""
        return self.folder / Path(name).expanduser()


def read(path: Path, changes: Sequence[str]) -> Table:
    """The table of a TOML file, with KEY=VALUE changes such as `train.steps=10` put in.

    Raises:
        ConfigError: the file is not there or no TOML, or a change has no value.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}.") from error
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"--set {change}: write KEY=VALUE, for example train.steps=100.")
        *tables, key = name.strip().split(".")
        place = table
        for part in tables:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {change}: '{part}' is no table in {path}.")
        place[key] = _value(value.strip())
    return table


def build(table: Table, folder: Path, data: type, method: type, defaults: Mapping[str, Any]) -> Config:
    """The settings of a table.

    Args:
        folder: that relative paths start from.
        data, method: classes of `[data]` and `[method]`.
        defaults: the method's own of `[train]`.

    Raises:
        ConfigError: a name or value does not fit.
    """
    names = ("models", "data", "train", "method", "save", "validate")
    parts = {name: _table(table.get(name, {}), f"[{name}]") for name in names}
    rest = {name: value for name, value in table.items() if name not in parts and name != "phase"}
    train, options = {**defaults, **parts["train"]}, parts["method"]
    known = {entry.name for entry in dataclasses.fields(Train)}
    phases = []
    listed = table.get("phase", [{}])
    if not isinstance(listed, list) or not listed:
        raise ConfigError("phase must be a list of tables. Write [[phase]] above each.")
    for number, each in enumerate(listed, 1):
        where, changes = f"[[phase]] {number}: " if "phase" in table else "", _table(each, f"[[phase]] {number}")
        ours = {name: value for name, value in changes.items() if name in known}
        theirs = {name: value for name, value in changes.items() if name not in known}
        phase = Phase(
            fill(Train, {**train, **ours}, f"{where}[train]"), fill(method, {**options, **theirs}, f"{where}[method]")
        )
        _check(phase.train, where)
        phases.append(phase)
    save, validate = fill(Save, parts["save"], "[save]"), fill(Validate, parts["validate"], "[validate]")
    if save.dtype not in ("float16", "bfloat16", "float32"):
        raise ConfigError(f"[save] dtype is '{save.dtype}', but must be float16, bfloat16 or float32.")
    _require_least(save, "[save]", every=0, keep=0)
    _require_least(validate, "[validate]", every=0, pictures=1, steps=1)
    return Config(
        fill(Common, rest, "The configuration"),
        fill(Models, parts["models"], "[models]"),
        fill(data, parts["data"], "[data]"),
        save,
        validate,
        tuple(phases),
        folder,
        table,
    )


def require_all_processes(environment: Mapping[str, str]) -> None:
    """Checks that the processes which a launcher was asked for are there.

    `accelerate launch --cpu --num_processes 2` starts one, and says nothing, unless it is told to use MPI.

    Raises:
        ConfigError: there is one process in place of several.
    """
    wants_several = environment.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_ADDR" in environment
    counts = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
    if wants_several and not any(name in environment for name in counts):
        raise ConfigError(
            "accelerate launch --cpu was asked for several processes, but has started one: by itself it can do no "
            "more without a GPU. Write accelerate launch --multi_gpu --num_processes 2 tools/train.py ... --cpu, or "
            "name the machines of MPI by --mpirun_hostfile."
        )


def fill(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """A dataclass from a table.

    Raises:
        ConfigError: a key is unknown or missing, or a value of another type.
    """
    hints = get_type_hints(kind)
    values = {}
    for name, value in table.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            advice = f"Did you mean '{near[0]}'?" if near else f"It knows {', '.join(hints)}."
            raise ConfigError(f"{where} has no '{name}'. {advice}")
        values[name] = _typed(value, hints[name], f"{where} {name}")
    missing = [
        entry.name
        for entry in dataclasses.fields(kind)  # type: ignore[arg-type]
        if entry.default is dataclasses.MISSING and entry.name not in values
    ]
    if missing:
        raise ConfigError(f"{where} needs '{missing[0]}'.")
    return kind(**values)


def _typed(value: Any, kind: Any, where: str) -> Any:
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is {value!r}, but must be a list.")
        return tuple(_typed(each, get_args(kind)[0], where) for each in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        raise ConfigError(f"{where} is {value!r}, but must be {names[kind]}.")
    return value


def _table(value: Any, where: str) -> Table:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {value!r}, but must be a table.")
    return value


def _require_least(settings: Any, where: str, **least: int) -> None:
    for name, number in least.items():
        if not number <= getattr(settings, name) < math.inf:
            raise ConfigError(f"{where} {name} is {getattr(settings, name)}, but must be at least {number}.")


def _check(train: Train, where: str) -> None:
    whole = dict.fromkeys(("steps", "batch_size", "accumulate", "height", "width"), 1)
    rest = dict.fromkeys(("learning_rate", "weight_decay", "warmup", "clip", "workers"), 0)
    _require_least(train, f"{where}[train]", **whole, **rest)
    for name in ("height", "width"):
        if getattr(train, name) % 8:
            raise ConfigError(f"{where}[train] {name} is {getattr(train, name)}, but must be a multiple of 8.")
    if train.precision not in ("no", "bf16", "fp16"):
        raise ConfigError(f"{where}[train] precision is '{train.precision}', but must be no, bf16 or fp16.")
    if not 0 <= train.ema < 1:
        raise ConfigError(f"{where}[train] ema is {train.ema}, but must be from 0 to below 1.")


def _value(text: str) -> Any:
    """A value as TOML writes it; what is none is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
