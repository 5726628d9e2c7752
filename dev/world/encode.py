"""Latents of many numbered pictures, once, for the stages that train on latents."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from . import loop
from .autoencoder import Autoencoder
from .config import LATENTS, STATE
from .device import half, pixels_last, placed
from .pictures import drawn
from .workers import Worker

FOLDER = STATE / "latents"
BATCH = 64


def main() -> None:
    """Writes the parts that are not there yet; workers share them out."""
    worker = Worker("encode")
    model = autoencoder()
    for part in range(worker.rank, LATENTS.parts, worker.count):
        if not _path(part).exists():
            _write(part, model)


def autoencoder() -> Autoencoder:
    """The trained one, fast to run."""
    model = placed(Autoencoder()).eval()
    model.load_state_dict(loop.trained("vae"))
    return model


def latents() -> tuple[torch.Tensor, list[int]]:
    """All latents that are there, (N, 4, H, W) of standard deviation 1, and the numbers of their pictures."""
    parts = [part for part in range(LATENTS.parts) if _path(part).exists()]
    numbers = [number for part in parts for number in _numbers(part)]
    return torch.from_numpy(np.concatenate([np.load(_path(part)) for part in parts])).float() * scale(), numbers


@lru_cache(maxsize=1)
def scale() -> float:
    """What latents are multiplied by for the U-Net, so that their standard deviation is 1."""
    return 1 / float(np.load(_path(0)).astype(np.float32).std())


@torch.no_grad()
def _write(part: int, model: Autoencoder) -> None:
    numbers, found = _numbers(part), []
    for start in range(0, len(numbers), BATCH):
        pictures = drawn(numbers[start : start + BATCH])
        with half():
            found.append(model.encode(pixels_last(pictures)))
    _save(part, torch.cat(found))


def write_first(latents: torch.Tensor) -> None:
    """Replaces all parts by the first one of new latents; `encode` writes the others when it runs."""
    for old in FOLDER.glob("*.npy"):
        old.unlink()
    _save(0, latents[: LATENTS.size])
    scale.cache_clear()


def _save(part: int, latents: torch.Tensor) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    unfinished = FOLDER / f"{part}.part.npy"
    np.save(unfinished, latents.half().cpu().numpy())
    unfinished.replace(_path(part))


def _numbers(part: int) -> range:
    return range(part * LATENTS.size, (part + 1) * LATENTS.size)


def _path(part: int) -> Path:
    return FOLDER / f"{part:03d}.npy"


if __name__ == "__main__":
    main()
