"""Trained adapters as files: safetensors, with where they come from beside the weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from torch import Tensor

from . import checkpoint

OriginT = TypeVar("OriginT")
WIDEST = 1 << 20  # the largest number that an origin may hold


def save(weights: dict[str, Tensor], origin: Any, path: str | Path, key: str) -> None:
    """Writes an adapter.

    Args:
        origin: a dataclass of what JSON can hold.
        key: of the file's metadata that holds it.

    Raises:
        RuntimeError: the folder cannot be written to, or the disk is full.
    """
    checkpoint.save(weights, path, {key: json.dumps(dataclasses.asdict(origin))})


def load(
    path: str | Path, key: str, origin: type[OriginT], method: str, advice: str
) -> tuple[dict[str, Tensor], OriginT]:
    """Reads an adapter.

    Args:
        key, origin: as it was saved, the class of the origin.
        method: whose adapter it must be, for the message.
        advice: what to choose instead, for the message: "a file that …".

    Raises:
        RuntimeError: the file is damaged or no adapter of the method.
    """
    name, weights = Path(path).name, checkpoint.load(path)
    try:
        found = origin(**json.loads(checkpoint.load_metadata(path).get(key, "null")))
        _require_types(found)
    except (TypeError, ValueError) as error:
        raise RuntimeError(
            f"{name} is no {method} adapter: it does not say what it was trained for. Choose {advice}."
        ) from error
    checkpoint.require_floats(weights, name)
    return weights, found


def _require_types(origin: Any) -> None:
    """Raises: TypeError or ValueError, a field holds what its class does not say."""
    for name, kind in get_type_hints(type(origin)).items():
        value = getattr(origin, name)
        if not isinstance(value, get_origin(kind) or kind):
            raise TypeError(name)
        if isinstance(value, int) and not 0 < value < WIDEST:
            raise ValueError(name)
