"""What the methods' tasks have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import comfy.k_diffusion.sampling
import comfy.samplers
import torch
from batch.files import json_objects
from torch import Tensor

from ..config import Config, ConfigError, fill
from ..data import Looked
from ..plan import generator_of

T = TypeVar("T")
SMALLEST = 16  # side of a picture, in pixels


@dataclass(frozen=True)
class ListData:
    """`[data]` of the methods whose records are the lines of a list.

    Attributes:
        root: folder that the files of the list are named from.
        file: the list, JSONL, in the root.
    """

    root: str
    file: str = "train.jsonl"


def noise_of(latent: Tensor, seed: int) -> Tensor:
    """Noise of a latent's shape, the same on every device."""
    return torch.randn(latent.shape, generator=generator_of(seed))


def whole(below: int, generator: torch.Generator) -> int:
    """A whole number from 0, drawn."""
    return int(torch.randint(below, (), generator=generator))


def chance(generator: torch.Generator) -> float:
    """A number in [0, 1), drawn."""
    return float(torch.rand((), generator=generator))


def paint(objective: Any, batch: Any, sampling: Any, steps: int) -> Tensor:
    """Latents (B, c, h, w) that a short run of Euler's sampler makes of a batch's noise, without guidance."""
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", steps).to(batch.noise.device)
    start = sampling.noise_scaling(sigmas[0], batch.noise, torch.zeros_like(batch.noise), True)
    return comfy.k_diffusion.sampling.sample_euler(partial(objective.denoised, batch), start, sigmas, disable=True)


def read_jsonl(config: Config, name: str, kind: type[T]) -> list[T]:
    """Records of a JSONL file, of a dataclass whose fields are those of its lines.

    Raises:
        ConfigError: the file or one of its lines cannot be read; names the line.
    """
    return [fill(kind, entry, where) for where, entry in json_objects(config.path(name), ConfigError)]


def paths_of(root: Path, **names: str) -> dict[str, Path]:
    """Files by role, without those that a record does not have."""
    return {role: root / name for role, name in names.items() if name}


def too_small(files: Mapping[str, Looked]) -> Iterable[str]:
    """Complaints about pictures in which nothing can be seen."""
    for role, file in files.items():
        if 0 < min(file.size) < SMALLEST:
            yield f"{role} is {file.size[0]} x {file.size[1]} pixels, but needs at least {SMALLEST}."


def one_of(value: str, choices: tuple[str, ...], key: str) -> str:
    """A value that must be one of several.

    Raises:
        ConfigError: it is another.
    """
    if value not in choices:
        raise ConfigError(f"{key} is '{value}', but must be one of {', '.join(choices)}.")
    return value
