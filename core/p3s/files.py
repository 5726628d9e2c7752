"""Adapters as files."""

from __future__ import annotations

from pathlib import Path

from ..models import adapter_files
from .adapter import Origin, TrainedAdapter

KEY = "refattention.p3s"


def save_adapter(adapter: TrainedAdapter, path: str | Path) -> None:
    """Writes an adapter.

    Raises:
        RuntimeError: the folder cannot be written to, or the disk is full.
    """
    adapter_files.save(adapter.weights, adapter.origin, path, KEY)


def load_adapter(path: str | Path) -> TrainedAdapter:
    """Reads an adapter.

    Raises:
        RuntimeError: the file is damaged or no adapter of P3S.
    """
    return TrainedAdapter(*adapter_files.load(path, KEY, Origin, "P3S", "a file that P3S Save wrote"))
