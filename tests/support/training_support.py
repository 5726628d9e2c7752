"""Small models as files, small data sets, and runs of the trainer, in this process."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy
import torch
from bootstrap import ROOT
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

TRAIN = ROOT / "tools" / "train.py"
EXTENSION = ROOT / "demo" / "known.py"


def base_file(folder: Path) -> Path:
    """The demo's SD1.5 with tame random weights, float32."""
    from refattention_demo import weights
    from sampling import model

    path = folder / "base.safetensors"
    if not path.exists():
        tensors = weights.state_dict("sd15")
        unet = model("sd15").model.diffusion_model.state_dict()
        tensors |= {f"model.diffusion_model.{name}": weight for name, weight in unet.items()}
        save_file({name: weight.contiguous() for name, weight in tensors.items()}, path)
    return path


def save_picture(path: Path, pixels: Tensor | numpy.ndarray[Any, Any]) -> None:
    """Writes (H, W, 3) or (H, W) in [0, 1]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((numpy.asarray(pixels) * 255).round().astype(numpy.uint8)).save(path)


def blob(seed: int, size: tuple[int, int]) -> Tensor:
    """A smooth picture (H, W, 3)."""
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=True)
    return fine[0].movedim(0, -1)


def config_file(folder: Path, **tables: Any) -> Path:
    """A configuration as TOML."""
    path = folder / "config.toml"
    path.write_text(toml(tables), encoding="utf-8")
    return path


def toml(tables: dict[str, Any]) -> str:
    """What has no table first, then the tables."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in tables.items() if not _is_table(value)]
    for name, table in tables.items():
        if isinstance(table, dict):
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        elif _is_table(table):
            for each in table:
                lines += [f"[[{name}]]", *(f"{key} = {json.dumps(value)}" for key, value in each.items())]
    return "\n".join(lines) + "\n"


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def train_here(method: str, config: Path, *arguments: str) -> int:
    """Runs the trainer in this process."""
    from accelerate.state import AcceleratorState

    # By its place: the folder of a checkout may be called the same, and is a package to pytest.
    spec = importlib.util.spec_from_file_location("trainer", TRAIN)
    assert spec is not None and spec.loader is not None
    trainer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(trainer)
    AcceleratorState._reset_state(reset_partial_state=True)
    return trainer.main([method, str(config), "--cpu", *arguments])


def losses(folder: Path, name: str = "loss") -> list[float]:
    """Of each step of a run."""
    lines = (folder / "losses.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)[name] for line in lines]
