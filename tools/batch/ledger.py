"""What has been run: one file that is only ever appended to, and folders that appear complete or not at all.

`manifest.jsonl` begins with a line about the run and gets a line for each row that ended. A row's files are gathered in
`.partial/<key>`, its line is written and flushed, then the folder is renamed. Whatever moment the process is killed at,
the next start finishes the rename, drops an unfinished last line, and goes on with the rows that have no line.

A folder that is not a ledger's own is refused before anything in it is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from batch.files import is_plain_name, new_file, parse_json

DONE, FAILED = "done", "failed"
MANIFEST, LOCK, PARTIAL = "manifest.jsonl", ".lock", ".partial"
Record = dict[str, Any]


class LedgerError(RuntimeError):
    """The folder of results cannot be used."""


class Ledger:
    """The results of one workflow in one folder; a context manager that keeps other runners out.

    Args:
        folder: made if it does not exist.
        about: the first line's content. A folder that holds results of another workflow is refused.

    Attributes:
        resumed: whether the folder held results of an earlier start.
        last: key -> the last line about a row, without what would need much memory for many rows (lists and objects).

    Raises: LedgerError when the folder is in use, belongs to another workflow, or is not a ledger's.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.about: Record = dict(about)
        self.resumed = False
        self.last: dict[str, Record] = {}
        self._folders: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._lock = FileLock(folder / LOCK, blocking=False)

    def __enter__(self) -> Ledger:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._refuse_foreign()
        try:
            self._lock.acquire()
        except Timeout as error:
            raise LedgerError(f"Another run writes to {self.folder}; wait for it or choose another folder.") from error
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
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

    def missing(self) -> dict[str, str]:
        """Key -> which of its results is no longer there, of the rows that are done."""
        found: dict[str, str] = {}
        if not self._file.exists():
            return found
        for line in self._lines():
            record = parse_json(line)
            if record.get("state") == DONE:
                found.pop(record["key"], None)
                if gone := self._gone(record):
                    found[record["key"]] = gone
        return found

    def _gone(self, record: Record) -> str | None:
        folder = self.folder / record["folder"]
        if not folder.is_dir() and not (folder := self._partials / record["key"]).is_dir():
            return str(record["folder"])
        names = (name for name in record.get("files") or () if not (folder / name).exists())
        return next((f"{record['folder']}/{name}" for name in names), None)

    def partial(self, key: str) -> Path:
        """An empty folder for a row's files."""
        folder = self._partials / key
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder

    def add(self, key: str, name: str, record: Mapping[str, Any]) -> Record:
        """Writes a row's line; a row that is done gets its folder, whose name is returned in `folder`.

        The cost does not depend on how many rows there are.
        """
        line = {"key": key, **record}
        if line["state"] == DONE:
            line["folder"] = self._unused(name)
        self._append(line)
        self._remember(line)
        return self._publish(line)

    @property
    def _file(self) -> Path:
        return self.folder / MANIFEST

    @property
    def _partials(self) -> Path:
        return self.folder / PARTIAL

    def _refuse_foreign(self) -> None:
        """Only looks."""
        for name, is_own in ((MANIFEST, Path.is_file), (LOCK, Path.is_file), (PARTIAL, Path.is_dir)):
            path = self.folder / name
            if os.path.lexists(path) and (path.is_symlink() or not is_own(path)):
                raise LedgerError(f"{path} was not made by this command; choose another folder.")
        lock = self.folder / LOCK
        if lock.exists() and lock.stat().st_size:
            raise LedgerError(f"{lock} was not made by this command; choose another folder.")
        if self._file.exists() and self._file.stat().st_size:
            with open(self._file, "rb") as file:
                self._check_owner(file.readline())

    def _check_owner(self, line: bytes) -> Record:
        try:
            about = parse_json(line)
            uuid.UUID(about["run"])
            other = about["workflow_sha256"] != self.about["workflow_sha256"]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LedgerError(f"{self._file} was not made by this command; choose another folder.") from error
        if other:
            raise LedgerError(f"{self.folder} holds results of another workflow; choose another folder.")
        return dict(about)

    def _open(self) -> None:
        if not self._file.exists() or self._file.stat().st_size == 0:
            self.about = {"run": str(uuid.uuid4()), **self.about}
            self._begin()
            return
        self._read()
        for record in self._unpublished():
            self._publish(record)

    def _begin(self) -> None:
        """The first line is there as a whole or not at all: it is what the folder is known by."""
        if self._file.exists():
            self._append(self.about)
            return
        self._partials.mkdir(exist_ok=True)
        with new_file(self._file, self._partials) as file:
            file.write(_line(self.about))

    def look(self) -> Ledger:
        """Reads what is done, without the lock, and writes nothing."""
        self._refuse_foreign()
        self.about = {"run": str(uuid.uuid4()), **self.about}
        if self._file.exists() and self._file.stat().st_size:
            for _ in self._lines():
                pass
        return self

    def _read(self) -> None:
        kept, last = 0, b"\n"
        for line in self._lines():
            kept, last = kept + len(line), line
        # All of it is known to be ours now.
        if kept < self._file.stat().st_size:
            os.truncate(self._file, kept)
        if not last.endswith(b"\n"):
            self._write(b"\n")
        self.resumed = True

    def _lines(self) -> Iterator[bytes]:
        """The lines that are whole; what they say is remembered."""
        with open(self._file, "rb") as file:
            first = file.readline()
            self.about = self._check_owner(first)
            yield first
            for number, line in enumerate(file, 2):
                if (record := self._parsed(line, number)) is None:
                    return
                self._remember(record)
                yield line

    def _parsed(self, line: bytes, number: int) -> Record | None:
        """The record of a line, or None for the last one if it was cut short."""
        try:
            record = parse_json(line)
        except ValueError as error:
            if not line.endswith(b"\n"):
                return None
            raise LedgerError(f"{self._file}, line {number}: {error}. Choose another folder.") from error
        known = isinstance(record, dict) and record.get("state") in (DONE, FAILED)
        if not known or not is_plain_name(record.get("key")):
            raise LedgerError(f"{self._file}, line {number}: it is not about a row. Choose another folder.")
        if record["state"] == DONE and not is_plain_name(record.get("folder")):
            raise LedgerError(f"{self._file}, line {number}: no folder has such a name. Choose another folder.")
        return dict(record)

    def _unpublished(self) -> Iterator[Record]:
        """The whole lines of rows that are done and whose folders were not renamed."""
        left = {path.name for path in self._partials.iterdir()} if self._partials.exists() else set()
        left = {key for key in left if self.is_done(key)}
        if not left:
            return
        with open(self._file, "rb") as file:
            records = {record["key"]: record for record in map(parse_json, file) if record.get("key") in left}
        yield from records.values()

    def _remember(self, record: Record) -> None:
        self.last[record["key"]] = {
            name: value for name, value in record.items() if not isinstance(value, (dict, list))
        }
        if "folder" in record:
            self._folders.add(record["folder"])

    def _unused(self, name: str) -> str:
        """`name`, or with a number behind it if there is or was such a folder: nothing is written over, and no line of
        the manifest comes to mean another one's files."""
        number = self._numbers.get(name, 0) + 1
        candidate = name if number == 1 else f"{name}_{number}"
        # A link that leads nowhere is something, too.
        while candidate in self._folders or os.path.lexists(self.folder / candidate):
            number += 1
            candidate = f"{name}_{number}"
        self._numbers[name] = number
        return candidate

    def _publish(self, record: Record) -> Record:
        source = self._partials / record["key"]
        while record["state"] == DONE and source.is_dir():
            target = self.folder / record["folder"]
            try:
                if not os.path.lexists(target):
                    os.rename(source, target)
                    break
            except OSError:
                if not os.path.lexists(target):
                    raise
            # Someone else made a folder of that name after the line had been written.
            record = {**record, "folder": self._unused(record["folder"])}
            self._append(record)
            self._remember(record)
        return record

    def _append(self, record: Record) -> None:
        self._write(_line(record))

    def _write(self, data: bytes) -> None:
        """All of it or, on a full disk, nothing: half a line would spoil the next one."""
        with open(self._file, "ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            rest = memoryview(data)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise


def _line(record: Record) -> bytes:
    return (json.dumps(record) + "\n").encode()
