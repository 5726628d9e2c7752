"""What has been run: one file that is only ever appended to, and folders that appear complete or not at all.

`manifest.jsonl` begins with a line about the run and gets a line for each row that ended. A row's files are gathered in
`.partial/<key>`, its line is written and flushed, then the folder is renamed. Whatever moment the process is killed at,
the next start finishes the rename, drops an unfinished last line, and goes on with the rows that have no line.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

DONE, FAILED = "done", "failed"
Record = dict[str, Any]


class LedgerError(RuntimeError):
    """The folder of results cannot be used."""


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in its canonical form, or of a file given by its path."""
    if isinstance(value, Path):
        with open(value, "rb") as file:
            return _file_digest(file)
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _file_digest(file: Any) -> str:
    total = hashlib.sha256()
    while chunk := file.read(1 << 20):
        total.update(chunk)
    return total.hexdigest()


class Ledger:
    """The results of one workflow in one folder; a context manager that keeps other runners out.

    Args:
        folder: made if it does not exist.
        about: the first line's content. A folder that holds results of another workflow is refused.

    Raises: LedgerError when the folder is in use or belongs to another workflow.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.about: Record = dict(about)
        self.last: dict[str, Record] = {}
        self._lock = FileLock(folder / ".lock", blocking=False)

    def __enter__(self) -> Ledger:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise LedgerError(f"Another run writes to {self.folder}; wait for it or choose another folder.") from error
        self._read()
        for record in self.last.values():
            self._publish(record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    @property
    def run(self) -> str:
        """Identifies the run, the same after a restart."""
        run: str = self.about["run"]
        return run

    def is_done(self, key: str) -> bool:
        """Whether the row with this key has its results."""
        return key in self.last and self.last[key]["state"] == DONE

    def partial(self, key: str) -> Path:
        """An empty folder for a row's files."""
        folder = self.folder / ".partial" / key
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def add(self, key: str, name: str, record: Mapping[str, Any]) -> Record:
        """Writes a row's line; a row that is done gets its folder, whose name is returned in `folder`."""
        line = {"key": key, **record}
        if line["state"] == DONE:
            line["folder"] = self._unused(name)
        self._append(line)
        self.last[key] = line
        self._publish(line)
        return line

    def _unused(self, name: str) -> str:
        """`name`, or with a number behind it if such a folder exists: nothing is written over."""
        taken = {record.get("folder") for record in self.last.values()}
        number, candidate = 1, name
        while candidate in taken or (self.folder / candidate).exists():
            number += 1
            candidate = f"{name}_{number}"
        return candidate

    def _publish(self, record: Record) -> None:
        source = self.folder / ".partial" / record["key"]
        if record["state"] == DONE and source.is_dir() and not (self.folder / record["folder"]).exists():
            os.rename(source, self.folder / record["folder"])

    @property
    def _file(self) -> Path:
        return self.folder / "manifest.jsonl"

    def _read(self) -> None:
        text = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
        complete = text[: text.rfind("\n") + 1]
        if complete != text:
            with open(self._file, "r+b") as file:
                file.truncate(len(complete.encode()))
        if not complete:
            self.about = {"run": str(uuid.uuid4()), **self.about}
            self._append(self.about)
            return
        try:
            about, *records = (json.loads(line) for line in complete.splitlines())
        except json.JSONDecodeError as error:
            raise LedgerError(f"{self._file} is damaged ({error}); choose another folder.") from error
        if about.get("workflow_sha256") != self.about["workflow_sha256"]:
            raise LedgerError(f"{self.folder} holds results of another workflow; choose another folder.")
        self.about = about
        self.last = {record["key"]: record for record in records}

    def _append(self, record: Record) -> None:
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
