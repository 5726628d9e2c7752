"""Small pictures of people in what they wear: smooth colours, the garment's colours inside the mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from refattention.core.leffa import body_map
from torch import Tensor
from training_support import EXTENSION, base_file, blob, config_file, save_picture

SIZE = 64, 48  # height, width


def people(folder: Path, count: int = 8) -> Path:
    """A folder in the layout of the trainer's JSONL."""
    rows = []
    hole = torch.zeros(SIZE)
    hole[16:48, 8:40] = 1
    save_picture(folder / "mask.png", hole)
    for number in range(count):
        person, garment = blob(2 * number, SIZE), blob(2 * number + 1, SIZE)
        save_picture(folder / f"person{number}.png", torch.where(hole[..., None] > 0, garment, person))
        save_picture(folder / f"garment{number}.png", garment)
        save_picture(folder / f"body{number}.png", body(number))
        row = {"person": f"person{number}.png", "reference": f"garment{number}.png", "mask": "mask.png"}
        rows.append({**row, "densepose": f"body{number}.png"})
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def leffa_config(folder: Path, **tables: Any) -> Path:
    """A configuration of Leffa's training on them."""
    people(folder / "data")
    base_file(folder)
    train = {"steps": 3, "batch_size": 2, "height": SIZE[0], "width": SIZE[1], "learning_rate": 1e-3}
    settings = {
        "output": "run",
        "trackers": [],
        "models": {"checkpoint": "base.safetensors", "extensions": [str(EXTENSION)]},
        "data": {"root": "data"},
        "save": {"every": 0, "dtype": "float32"},
        "validate": {"every": 0},
        **tables,
    }
    return config_file(folder, **{**settings, "train": {**train, **tables.get("train", {})}})


def body(seed: int) -> Tensor:
    """A DensePose picture of random parts, (H, W, 3)."""
    parts = (blob(100 + seed, SIZE)[..., 0] * 24).round().clamp(0, 24).to(torch.uint8)
    drawn = body_map.draw(body_map.BodyMap(parts.numpy()), body_map.PARULA)
    return torch.from_numpy(drawn) / 255
