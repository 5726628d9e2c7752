"""Training pictures by their number, drawn when they are needed, and sheets of results."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from refattention_demo.world import record
from refattention_demo.world.draw import Picture, picture
from refattention_demo.world.record import Record
from torch import Tensor

cv2.setNumThreads(1)
TWINS, STRANGERS = 0.15, 0.07


def numbered(number: int) -> Record:
    """The picture of that number. Some are twins: only attention over the picture can keep them alike."""
    rng = np.random.default_rng(number)
    kind = rng.random()
    if kind < TWINS:
        return record.twins(rng)
    return record.random_record(rng, 2 if kind < TWINS + STRANGERS else 1)


def tensor(pictures: list[Picture]) -> Tensor:
    """(B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div_(255)


def to_batch(pictures: NDArray[np.float32]) -> Tensor:
    """(B, H, W, 3) -> (B, 3, H, W)."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def drawn(numbers: range) -> Tensor:
    """The pictures of these numbers, (B, 3, H, W) in [0, 1]."""
    return tensor([picture(numbered(number)) for number in numbers])


def crops(rng: Generator, count: int, size: int) -> Tensor:
    """Random crops of new pictures, two of each picture, half of them mirrored: (count, 3, size, size)."""
    found: list[Picture] = []
    while len(found) < count:
        whole = picture(numbered(int(rng.integers(10**8))))
        if rng.random() < 0.5:
            whole = whole[:, ::-1]
        for _ in range(2):
            y, x = rng.integers(0, len(whole) - size + 1, 2)
            found.append(whole[y : y + size, x : x + size])
    return tensor(found[:count])


def write_sheet(path: Path, pictures: Tensor, columns: int) -> None:
    """Writes pictures (B, 3, H, W) in [0, 1] as one PNG with thin gaps."""
    rows = -(-len(pictures) // columns)
    height, width = pictures.shape[-2:]
    sheet = np.full((rows * (height + 4), columns * (width + 4), 3), 255, np.uint8)
    for index, one in enumerate(pictures.clamp(0, 1).mul(255).byte().permute(0, 2, 3, 1).numpy()):
        y, x = index // columns * (height + 4), index % columns * (width + 4)
        sheet[y : y + height, x : x + width] = one
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), sheet[..., ::-1])
