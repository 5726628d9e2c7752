"""What has become of each row, kept in the shared folder's manifest; the driver alone writes it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from batch.files import digest
from batch.jobs import Job
from batch.ledger import FAILED, PARTIAL, Ledger

from cluster.places import LOST, RECORD, Record

COUNTS = ("attempts", "failures", "losses")


@dataclass
class Tally:
    """How often a row was started, failed by itself, and lost the worker under it.

    Attributes:
        attempts: the highest number that an attempt had.
        final: it would fail again, so this command does not try it any more; another may, once a host was mended.
        error: the last reason.
    """

    attempts: int = 0
    failures: int = 0
    losses: int = 0
    final: bool = False
    error: str = ""

    def add(self, outcome: Record) -> None:
        """Counts an attempt that ended."""
        self.attempts = max(self.attempts, outcome["attempt"])
        self.failures += outcome["state"] == FAILED
        self.losses += outcome["state"] == LOST
        self.final = bool(outcome.get("final"))
        self.error = str(outcome.get("error", ""))

    def as_record(self) -> Record:
        """For the manifest."""
        return {"attempts": self.attempts, "failures": self.failures, "losses": self.losses}


class Results(Protocol):
    """What the driver does with results."""

    def is_done(self, key: str) -> bool:
        """Whether a row is committed."""

    def tally(self, key: str) -> Tally:
        """A row's counts; from every run of the driver."""

    def finished(self, key: str) -> Record | None:
        """The record of an attempt that an earlier driver did not hear of."""

    def prepare(self, job: Job) -> None:
        """Puts a row's input files where workers can read them."""

    def commit(self, job: Job, about: Record) -> None:
        """Makes the attempt with the number `attempt` the row's result: once and for all."""

    def note(self, job: Job, about: Record) -> None:
        """Keeps that an attempt failed or was lost."""

    def skip(self, key: str, number: int) -> None:
        """The number of an attempt was used by another driver's worker."""

    def tidy(self) -> None:
        """Removes what no row needs any more; no worker runs."""


class FolderResults:
    """Results in a folder, with the one-host runner's ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._partial = ledger.folder / PARTIAL
        self._left: dict[str, list[int]] = {}
        for key, number in attempts_in(path.name for path in self._partial.glob("*~*")):
            self._left.setdefault(key, []).append(number)

    def is_done(self, key: str) -> bool:
        return self._ledger.is_done(key)

    def tally(self, key: str) -> Tally:
        last = self._ledger.last.get(key, {})
        attempts, failures, losses = (int(last.get(name, 0)) for name in COUNTS)
        tally = Tally(attempts, failures, losses, error=str(last.get("error", "")))
        # What a driver that was killed had started.
        tally.attempts = max(tally.attempts, *self._left.get(key, [0]))
        return tally

    def finished(self, key: str) -> Record | None:
        # A driver that was killed while it committed has taken the number away already.
        folders = [self._partial / key, *(self._partial / f"{key}~{number}" for number in self._left.get(key, ()))]
        return next((record for folder in folders if (record := whole(folder))), None)

    def prepare(self, job: Job) -> None:
        """The table's folder is a shared one, too."""

    def commit(self, job: Job, about: Record) -> None:
        source = self._partial / f"{job.key}~{about['attempt']}"
        if source.exists():
            os.rename(source, self._ledger.partial(job.key))
        record = self._ledger.add(job.key, job.row.name, about)
        (self._ledger.folder / record["folder"] / RECORD).unlink(missing_ok=True)

    def note(self, job: Job, about: Record) -> None:
        self._ledger.add(job.key, job.row.name, {**about, "state": FAILED})

    def skip(self, key: str, number: int) -> None:
        self._left.setdefault(key, []).append(number)

    def tidy(self) -> None:
        for path in self._partial.glob("*~*"):
            shutil.rmtree(path, ignore_errors=True)


def attempts_in(names: Iterable[str]) -> list[tuple[str, int]]:
    """Row's key and number of each attempt among the names in a place."""
    parts = (name.rpartition("~") for name in names)
    return [(key, int(number)) for key, _, number in parts if key]


def whole(folder: Path) -> Record | None:
    """The record of an attempt, if it has one and its files are what it says."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if all(digest(folder / name) == sha256 for name, sha256 in record["files"].items()):
            return record
    except (OSError, ValueError, KeyError):
        pass
    return None
