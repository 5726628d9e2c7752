"""Where results are kept, as a worker sees it: a folder that all machines share, or an fsspec URL.

A worker gathers the files of an attempt and writes its record last. What has a record is whole, whoever died meanwhile.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol

from batch.jobs import Job
from batch.ledger import MANIFEST, PARTIAL

RECORD = ".record.json"
LOGS = "logs"
# How an attempt can end, beside the ledger's done and failed.
LOST, TAKEN = "lost", "taken"
Record = dict[str, Any]


class Taken(RuntimeError):
    """Somebody has started this very attempt already."""


class Place(Protocol):
    """What a worker does with results."""

    def check(self, run: str) -> None:
        """Raises OSError when the run's folder is not seen from here."""

    def log_file(self, worker: str) -> Path:
        """Where a worker's host is to write."""

    def with_files(self, job: Job) -> Job:
        """A job whose files can be read on this machine."""

    def begin(self, name: str) -> Path:
        """A new folder for the files of an attempt. Raises: Taken."""

    def finish(self, name: str, folder: Path, record: Record) -> None:
        """Writes the record of an attempt, after all its files."""

    def end(self, worker: str) -> None:
        """A worker stops."""


def place_of(output: str) -> Place:
    """The place that --output names."""
    if "://" not in output:
        return SharedFolder(Path(output))
    from cluster.objects import ObjectPlace

    return ObjectPlace(output)


class SharedFolder:
    """A folder that has the same path on every machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check(self, run: str) -> None:
        """The first line of the manifest names the run."""
        with open(self._folder / MANIFEST, encoding="utf-8") as file:
            if run not in file.readline():
                raise OSError(f"{self._folder} is another folder than the driver's")

    def log_file(self, worker: str) -> Path:
        folder = self._folder / LOGS
        folder.mkdir(exist_ok=True)
        return folder / f"{worker}.log"

    def with_files(self, job: Job) -> Job:
        return job

    def begin(self, name: str) -> Path:
        folder = self._folder / PARTIAL / name
        folder.parent.mkdir(exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError as error:
            raise Taken(name) from error
        return folder

    def finish(self, name: str, folder: Path, record: Record) -> None:
        for path in folder.iterdir():
            sync(path)
        part = folder / f"{RECORD}.part"
        part.write_text(json.dumps(record), encoding="utf-8")
        sync(part)
        os.replace(part, folder / RECORD)
        sync(folder)

    def end(self, worker: str) -> None:
        pass


def sync(path: Path) -> None:
    """Has the system write a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
