"""What the methods learn on top of the base model, by the command that users train with, `tools/train.py`.

    python -m world.train_adapters [NAME ...]       # all of `ADAPTERS` in their order, or some

Each has its settings in `settings/`, with changes in `config.py`; data, base model and results lie in the state folder.
Adapters of which one does not go on from another can be trained side by side, a core each: call this once for each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refattention_demo.world import expand, models
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import data_sets, deadiff_start, export, refine_start
from .config import ADAPTER_STATE, ADAPTERS, ROOT, result
from .train import MEMORY

BASE, VISION, DEADIFF_START, REFINE_START = (
    ADAPTER_STATE / f"{name}.safetensors" for name in ("base", "vision", "deadiff_start", "refine_start")
)
EXTENSIONS = [str(ROOT / "demo" / "known.py"), str(ROOT / "dev" / "world" / "vision_extension.py")]


def main() -> None:
    """Trains the adapters named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(ADAPTERS), metavar="NAME", choices=[*ADAPTERS, []])
    names = parser.parse_args().names
    write_models()
    for name in names:
        train(name)


def write_models() -> None:
    """Base model, vision encoder and what DEADiff starts from, as files; those that are there stay."""
    ADAPTER_STATE.mkdir(parents=True, exist_ok=True)
    _write(BASE, lambda: expand.checkpoint(export.compact()))
    _write(VISION, export.vision)
    deadiff_start.write(DEADIFF_START, BASE)


def train(name: str) -> None:
    """Runs a training, or goes on with it.

    Raises:
        subprocess.CalledProcessError: it failed; its log says why.
    """
    adapter = ADAPTERS[name]
    changes = {
        "output": str(ADAPTER_STATE / name),
        "data.root": str(data_sets.write(adapter.data or adapter.method, adapter.count)),
        "models.checkpoint": str(BASE),
        "models.extensions": EXTENSIONS,
        **adapter.changes,
    }
    if adapter.start:
        changes["models.start"] = str(begun())
    elif adapter.method == "deadiff":
        changes["models.start"] = str(DEADIFF_START)
    settings = Path(__file__).with_name("settings") / f"{adapter.method}.toml"
    if adapter.method == "refine":
        changes["models.clip_vision"] = str(VISION)
        refine_start.write(REFINE_START, settings, _said(changes))
        changes["models.start"] = str(REFINE_START)
    command = [sys.executable, str(ROOT / "tools" / "train.py"), adapter.method, str(settings), "--cpu"]
    for change in _said(changes):
        command += ["--set", change]
    if (ADAPTER_STATE / name / "run.json").exists():
        command.append("--resume")
    with (ADAPTER_STATE / f"{name}.log").open("ab") as log:
        environment = {"OMP_NUM_THREADS": "1", **os.environ, **MEMORY}
        subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=True)


def _said(changes: dict[str, Any]) -> list[str]:
    """Changes of settings as `--set` takes them."""
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]  # which is TOML, too


def begun() -> Path:
    """A try-on model to go on from: the one that was trained here, or else the one that the demo has."""
    if result("leffa").exists():
        return result("leffa")
    path = ADAPTER_STATE / "demo_leffa.safetensors"
    _write(path, lambda: expand.leffa(load_file(models.FOLDER / models.LEFFA), export.compact()))
    return path


def _write(path: Path, make: Callable[[], dict[str, Tensor]]) -> None:
    """Writes tensors in the precision that they have; a file that is there stays."""
    if not path.exists():
        save_file({name: tensor.contiguous().clone() for name, tensor in make().items()}, path)


if __name__ == "__main__":
    main()
