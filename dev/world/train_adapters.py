"""What the methods learn on top of the base model, by the command that users train with, `tools/train.py`.

    python -m world.train_adapters [NAME ...]       # all of `ADAPTERS` in their order, or some

Each has its settings in `settings/NAME.toml`; data, base model and results lie in the state folder. Adapters of which
one does not go on from another can be trained side by side, a core each: call this once for each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from refattention_demo.world import expand
from safetensors.torch import save_file

from . import data_sets, deadiff_start, export
from .config import ADAPTER_STATE, ADAPTERS, ROOT, result
from .train import MEMORY

SETTINGS = Path(__file__).with_name("settings")
BASE, VISION = ADAPTER_STATE / "base.safetensors", ADAPTER_STATE / "vision.safetensors"
COUNT = 3000


def main() -> None:
    """Trains the adapters named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(ADAPTERS), metavar="NAME", choices=[*ADAPTERS, []])
    write_models()
    for name in parser.parse_args().names:
        train(name)


def write_models() -> None:
    """Base model, vision encoder and what DEADiff starts from, as files that ComfyUI loads; newer ones replace them."""
    ADAPTER_STATE.mkdir(parents=True, exist_ok=True)
    for path, tensors in (
        (BASE, lambda: expand.checkpoint(export.compact())),
        (VISION, lambda: expand.vision(export.vision())),
    ):
        if not path.exists():
            save_file({name: tensor.contiguous() for name, tensor in tensors().items()}, path)
    deadiff_start.write(ADAPTER_STATE / "deadiff_start.safetensors", BASE)


def train(name: str) -> None:
    """Runs a training, or goes on with it.

    Raises:
        subprocess.CalledProcessError: it failed; its log says why.
    """
    adapter = ADAPTERS[name]
    changes = {
        "output": ADAPTER_STATE / name,
        "data.root": data_sets.write(adapter.method, COUNT),
        "models.checkpoint": BASE,
        "models.extensions": [str(ROOT / "demo" / "known.py")],
    }
    if adapter.start:
        changes["models.start"] = result(adapter.start)
    if adapter.method == "deadiff":
        changes["models.start"] = ADAPTER_STATE / "deadiff_start.safetensors"
    if adapter.method == "refine":
        changes["models.clip_vision"] = VISION
    command: list[str | Path] = [
        sys.executable,
        ROOT / "tools" / "train.py",
        adapter.method,
        SETTINGS / f"{name}.toml",
        "--cpu",
    ]
    for key, value in changes.items():
        command += ["--set", f"{key}={value if isinstance(value, list) else repr(str(value))}"]
    if (ADAPTER_STATE / name / "run.json").exists():
        command.append("--resume")
    with (ADAPTER_STATE / f"{name}.log").open("ab") as log:
        environment = {"OMP_NUM_THREADS": "1", **os.environ, **MEMORY}
        subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=True)


if __name__ == "__main__":
    main()
