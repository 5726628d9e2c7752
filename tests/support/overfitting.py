"""Eight pictures of the drawn world for the trainings, small enough to overfit on in minutes."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from encoders import encoder
from PIL import Image
from refattention_demo.configs import register
from refattention_demo.world import draw, expand, models, record, truth
from safetensors.torch import load_file, save_file
from taught_base import taught
from torch import Tensor
from training.config import build, read
from training.pictures import Crop
from training_support import EXTENSION, config_file
from world import data_sets

COUNT, SIZE = 8, 32
# Nothing is dropped: what it overfits on is seen whole in each step.
METHODS: dict[str, dict[str, Any]] = {
    "leffa": {"condition_drop": 0.0},
    # In the other two sets one branch reads, whose tokens reach some of the layers only: too few for a whole picture.
    "deadiff": {"drops": [0.0, 0.0, 0.0], "mix": [0, 0, 1]},
    "refine": {"condition_drop": 0.0, "alignment_share": 1.0, "flip": False},
    # One prompt for eight pictures: only if each is read for itself, it is told which one to paint.
    "p3s": {"condition_drop": 0.0, "reference": "same"},
}


def configured(method: str, folder: Path, taught_steps: int = 0, **train: Any) -> Path:
    """Data of a method, the world's base model, and a configuration of a training on them.

    Args:
        folder: an empty one.
        taught_steps: so long the base is taught the pictures first, where the method keeps it frozen; 0 = not.
        train: settings of `[train]` beside the sizes.
    """
    (folder / "data").mkdir()
    lines = [DATA[method](folder / "data", number) for number in range(COUNT)]
    if method != "p3s":
        (folder / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    weights = _base(0 if method == "leffa" else taught_steps)
    save_file({name: each.contiguous() for name, each in weights.items()}, folder / "base.safetensors")
    start = {"start": str(models.FOLDER / models.DEADIFF)} if method == "deadiff" else {}
    words = {"identifier": "orange", "class_word": "cat"} if method == "p3s" else {}
    sizes = {"height": SIZE, "width": SIZE, "batch_size": COUNT, "gradient_checkpointing": False}
    return config_file(
        folder,
        output="run",
        trackers=[],
        models={"checkpoint": "base.safetensors", "extensions": [str(EXTENSION)], **start},
        data={"root": "data", **words},
        train={**sizes, **train},
        save={"every": 0, "dtype": "float32"},
        validate={"every": 0},
        method=METHODS[method],
    )


def _rng(number: int) -> np.random.Generator:
    return np.random.default_rng([7, number])


@functools.cache
def _base(taught_steps: int) -> dict[str, Tensor]:
    """The checkpoint."""
    weights = expand.checkpoint(load_file(models.FOLDER / models.BASE))
    if not taught_steps:
        return weights
    register()
    crop = Crop((draw.SIZE, draw.SIZE), (SIZE, SIZE))
    drawn = [torch.from_numpy(draw.picture(record.random_record(_rng(n))) / np.float32(255)) for n in range(COUNT)]
    return taught(weights, torch.stack([crop.picture(each) for each in drawn]), taught_steps)


def _shown(folder: Path, number: int) -> dict[str, str]:
    """One of the eight pictures, which is its own reference."""
    Image.fromarray(draw.picture(record.random_record(_rng(number)))).save(folder / f"{number}.png")
    return {"kind": "reconstruction", "target": f"{number}.png"}


def _object(folder: Path, number: int) -> dict[str, str]:
    """Somebody in one of the eight pictures, and the same one elsewhere."""
    rng = _rng(number)
    shown = record.random_record(rng)
    other = record.another_view(shown, rng)
    files = {}
    for role, pixels in {
        "image": draw.picture(shown),
        "mask": truth.subject(shown).astype(np.uint8) * 255,
        "reference": draw.picture(other),
        "reference_mask": truth.subject(other).astype(np.uint8) * 255,
    }.items():
        Image.fromarray(pixels).save(folder / f"{number}_{role}.png")
        files[role] = f"{number}_{role}.png"
    return files


DATA: dict[str, Callable[[Path, int], dict[str, str]]] = {
    "leffa": lambda folder, number: data_sets.person(folder, f"{number}", _rng(number)),
    "deadiff": _shown,
    "refine": _object,
    "p3s": _shown,
}


def config_of(method: str, file: Path, *changes: str) -> Any:
    """The configuration of a file."""
    module: Any = importlib.import_module(f"training.tasks.{method}")
    return build(read(file, changes), file.parent, module.Data, module.Options, module.DEFAULTS)


def task_of(method: str, config: Any) -> Any:
    """A method's task as the trainer makes it."""
    register()
    return importlib.import_module(f"training.tasks.{method}").Task(config)


@contextmanager
def small_eyes() -> Iterator[None]:
    """A random DINOv2 of 16 patches in place of a file: the smallest vision encoder that ComfyUI knows has 300 M."""
    with ExitStack() as stack:
        for method in ("refine", "p3s"):
            module = importlib.import_module(f"training.tasks.{method}")
            stack.enter_context(patch.object(module, "load_vision", lambda config: encoder("dino2")))
        yield


@torch.no_grad()
def fixed_loss(task: Any, draws: int) -> float:
    """The denoising loss of all samples at so many fixed timesteps and noises each."""
    found = []
    for seed in range(draws):
        batch = task.batch([task.sample((number, 100 * seed + number, seed), drops=False) for number in range(COUNT)])
        losses = task.objective(batch)
        found.append(losses.get("denoising", losses["loss"]).item())
    return sum(found) / draws
