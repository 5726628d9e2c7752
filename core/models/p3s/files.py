"""Adapters as files: safetensors, with where they come from beside the weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from .. import checkpoint
from .adapter import Origin, TrainedAdapter

KEY = "refattention.p3s"


def save_adapter(adapter: TrainedAdapter, path: str | Path) -> None:
    """Writes an adapter.

    Raises:
        RuntimeError: the folder cannot be written to, or the disk is full.
    """
    checkpoint.save(adapter.weights, path, {KEY: json.dumps(dataclasses.asdict(adapter.origin))})


def load_adapter(path: str | Path) -> TrainedAdapter:
    """Reads an adapter.

    Raises:
        RuntimeError: the file is damaged or no adapter of P3S.
    """
    weights, text = checkpoint.load(path), checkpoint.load_metadata(path).get(KEY)
    try:
        origin = Origin(**json.loads(text or "null"))
    except (TypeError, ValueError) as error:
        raise RuntimeError(
            f"{Path(path).name} is no P3S adapter: it does not say what it was trained for. Choose a file that P3S "
            "Save wrote."
        ) from error
    return TrainedAdapter(weights, origin)
