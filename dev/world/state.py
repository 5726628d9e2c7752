"""Files of a training that may be killed at any moment: each is there completely or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint in place of an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    torch.save(content, unfinished)
    os.replace(unfinished, path)


def load(path: Path) -> dict[str, Any] | None:
    """The checkpoint of that name, or None."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def log(path: Path, **values: float | str) -> None:
    """Adds a line to a learning curve, and prints it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}
    with path.open("a") as file:
        file.write(json.dumps(rounded) + "\n")
    print(path.stem, rounded, flush=True)
