"""Adapters as files."""

from __future__ import annotations

from pathlib import Path

from ..models import adapter_files
from .adapter import Origin, TrainedAdapter

KEY = "refattention.refine_align"


def save_adapter(adapter: TrainedAdapter, path: str | Path) -> None:
    """Writes an adapter.

    Raises:
        RuntimeError: the folder cannot be written to, or the disk is full.
    """
    adapter_files.save(adapter.weights, adapter.origin, path, KEY)


def load_adapter(path: str | Path) -> TrainedAdapter:
    """Reads an adapter.

    Raises:
        RuntimeError: the file is damaged or no adapter of Refine-by-Align.
    """
    advice = "the file of an adapter that was trained for it"
    return TrainedAdapter(*adapter_files.load(path, KEY, Origin, "Refine by Align", advice))
