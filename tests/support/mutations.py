"""Ways in which a checkpoint file can be wrong."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Weights = dict[str, Tensor]
Save = Callable[[Weights, Path], None]
Mutate = Callable[[Weights, Path, random.Random, Save], None]
DTYPES = (torch.int64, torch.uint8, torch.bool, torch.float64, torch.float16, torch.bfloat16, torch.complex64)


class Hostile:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def trace_of_code(path: Path) -> Path:
    """What exists after the code in a hostile file was run."""
    return path.with_name("executed")


def write(weights: Weights, path: Path, metadata: dict[str, str] | None = None) -> None:
    """The file as it should be, in the format that its name says."""
    if path.suffix == ".safetensors":
        save_file({name: tensor.clone() for name, tensor in weights.items()}, path, metadata)
    else:
        torch.save(weights, path)


def truncated(weights: Weights, path: Path, random: random.Random, save: Save) -> None:
    save(weights, path)
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(len(content))])


def bits_flipped(weights: Weights, path: Path, random: random.Random, save: Save) -> None:
    """Anywhere in the file."""
    _flip(weights, path, random, save, lambda size: size)


def header_flipped(weights: Weights, path: Path, random: random.Random, save: Save) -> None:
    """Where names, types and shapes are written, most of the time."""
    _flip(weights, path, random, save, lambda size: min(size, 2000))


def _flip(weights: Weights, path: Path, random: random.Random, save: Save, end: Callable[[int], int]) -> None:
    save(weights, path)
    content = bytearray(path.read_bytes())
    for _ in range(random.randint(1, 8)):
        content[random.randrange(end(len(content)))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def bytes_removed(weights: Weights, path: Path, random: random.Random, save: Save) -> None:
    save(weights, path)
    content = path.read_bytes()
    start = random.randrange(len(content))
    path.write_bytes(content[:start] + content[start + random.randint(1, 64) :])


def other_dtype(weights: Weights, path: Path, random: random.Random, save: Save) -> None:
    name = random.choice(sorted(weights))
    save({**weights, name: weights[name].to(random.choice(DTYPES))}, path)


def other_shape(weights: Weights, path: Path, random: random.Random, save: Save) -> None:
    name = random.choice(sorted(weights))
    shape = list(weights[name].shape) or [1]
    change = random.choice(("longer", "shorter", "more axes", "fewer axes"))
    if change == "more axes":
        shape.insert(random.randrange(len(shape) + 1), 1)
    elif change == "fewer axes":
        shape = [torch.Size(shape).numel()]
    else:
        axis = random.randrange(len(shape))
        shape[axis] = shape[axis] + 1 if change == "longer" else shape[axis] // 2
    save({**weights, name: torch.zeros(shape)}, path)


def names_missing(weights: Weights, path: Path, random: random.Random, save: Save) -> None:
    gone = set(random.sample(sorted(weights), random.randint(1, len(weights) - 1)))
    save({name: tensor for name, tensor in weights.items() if name not in gone}, path)


def names_changed(weights: Weights, path: Path, random: random.Random, save: Save) -> None:
    changed = set(random.sample(sorted(weights), random.randint(1, 3)))
    save({f"{name}_" if name in changed else name: tensor for name, tensor in weights.items()}, path)


def huge_header(weights: Weights, path: Path, random: random.Random, save: Save) -> None:
    """A safetensors file that announces far more than it has, or tensors beyond any memory."""
    size = 1 << random.randint(40, 50)
    tensor = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    header = json.dumps({name: tensor for name in weights}).encode()
    announced = random.choice((len(header), 1 << random.randint(30, 62)))
    path.write_bytes(struct.pack("<Q", announced) + header + bytes(64))


def code(weights: Weights, path: Path, random: random.Random, save: Save) -> None:
    """A pickle that would run something."""
    content = {**weights, "extra": Hostile(trace_of_code(path))}
    if random.random() < 0.5:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=random.choice((0, 2, 4))))


def other_content(weights: Weights, path: Path, random: random.Random, save: Save) -> None:
    thing = random.choice(([torch.zeros(2)], 3, None, {}, {"a": 1}, {1: torch.zeros(1)}, {"a": {"b": torch.zeros(1)}}))
    torch.save(thing, path)


def noise(weights: Weights, path: Path, random: random.Random, save: Save) -> None:
    path.write_bytes(random.randbytes(random.randrange(5000)))


MUTATIONS: tuple[Mutate, ...] = (
    truncated, bits_flipped, header_flipped, bytes_removed, other_dtype, other_shape, names_missing, names_changed,
    huge_header, code, other_content, noise,
)  # fmt: skip
