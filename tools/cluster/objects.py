"""Results below an fsspec URL, where nothing is renamed and nothing locked.

    run.json                        the run's name and workflow
    rows/KEY~ATTEMPT/…              files of an attempt, .record.json last
    manifest/KEY.json               what was committed for a row: written if it is not there yet, never again
    attempts/KEY~ATTEMPT.json       an attempt that failed or was lost
    inputs/SHA256-NAME              files of the table
    logs/WORKER.log

That a row is committed once is the store's promise to write an object only if it does not exist (S3, GCS and Azure keep
it); so even two drivers commit no row twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from batch.jobs import Job
from batch.ledger import LedgerError

from cluster.places import RECORD, Record, Taken
from cluster.results import Tally, attempts_in

WITHOUT = "Results at a URL need fsspec and its part for that kind of URL, such as s3fs or gcsfs: pip install"


class Objects:
    """The objects below a URL.

    Raises: LedgerError when nothing here knows such a URL.
    """

    def __init__(self, url: str) -> None:
        try:
            import fsspec

            self.files, self.root = fsspec.core.url_to_fs(url.rstrip("/"))
        except (ImportError, ValueError) as error:
            raise LedgerError(f"{WITHOUT} them. ({error})") from error

    def path(self, name: str) -> str:
        """Where an object is, as the file system wants it."""
        return f"{self.root}/{name}"

    def read(self, name: str) -> Any:
        """The JSON value of an object. Raises: FileNotFoundError."""
        return json.loads(self.files.cat_file(self.path(name)))

    def put_new(self, name: str, value: Any) -> None:
        """Writes an object of JSON. Raises: FileExistsError when it is there, written by whomever."""
        data, path = json.dumps(value).encode(), self.path(name)
        if "file" in self.files.protocol:  # whose pipe_file looks first and writes then
            self.files.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "xb") as file:
                file.write(data)
        else:
            self.files.pipe_file(path, data, mode="create")

    def send(self, path: Path, name: str) -> None:
        """Writes a file."""
        self.files.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        self.files.put_file(str(path), self.path(name))

    def names(self, folder: str) -> list[str]:
        """The last parts of the names in a folder."""
        self.files.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            return [each.rstrip("/").rpartition("/")[2] for each in self.files.ls(self.path(folder), detail=False)]
        return []


class ObjectPlace:
    """A worker's side."""

    def __init__(self, url: str) -> None:
        self._objects = Objects(url)
        self._scratch = Path(tempfile.mkdtemp(prefix="refattention-worker-"))

    def check(self, run: str) -> None:
        if self._objects.read("run.json")["run"] != run:
            raise OSError(f"{self._objects.root} holds another run")

    def log_file(self, worker: str) -> Path:
        return self._scratch / f"{worker}.log"

    def with_files(self, job: Job) -> Job:
        uploads = []
        for each in job.uploads:
            path = self._scratch / each.sha256 / each.path.name
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                self._objects.files.get_file(self._objects.path(f"inputs/{each.name}"), str(path))
            uploads.append(replace(each, path=path))
        return replace(job, uploads=tuple(uploads))

    def begin(self, name: str) -> Path:
        try:
            self._objects.put_new(f"rows/{name}/.begun", {})
        except FileExistsError as error:
            raise Taken(name) from error
        return Path(tempfile.mkdtemp(dir=self._scratch))

    def finish(self, name: str, folder: Path, record: Record) -> None:
        for path in folder.iterdir():
            self._objects.send(path, f"rows/{name}/{path.name}")
            path.unlink()
        folder.rmdir()
        self._objects.put_new(f"rows/{name}/{RECORD}", record)

    def end(self, worker: str) -> None:
        if (log := self.log_file(worker)).exists():
            self._objects.send(log, f"logs/{worker}.log")
        shutil.rmtree(self._scratch, ignore_errors=True)


class ObjectResults:
    """The driver's side."""

    def __init__(self, url: str, about: Mapping[str, Any]) -> None:
        self._objects = Objects(url)
        with contextlib.suppress(FileExistsError):
            self._objects.put_new("run.json", {"run": str(uuid.uuid4()), **about})
        first = self._objects.read("run.json")
        if first["workflow_sha256"] != about["workflow_sha256"]:
            raise LedgerError(f"{url} holds results of another workflow; choose another place.")
        self.run: str = first["run"]
        self._done = {name.removesuffix(".json") for name in self._objects.names("manifest")}
        self._tallies: dict[str, Tally] = {}
        self._left: dict[str, list[int]] = {}
        self._sent = set(self._objects.names("inputs"))
        for key, number in attempts_in(self._objects.names("rows")):
            self._left.setdefault(key, []).append(number)
        for key, number in sorted(attempts_in(name.removesuffix(".json") for name in self._objects.names("attempts"))):
            self._tallies.setdefault(key, Tally()).add(self._objects.read(f"attempts/{key}~{number}.json"))

    def is_done(self, key: str) -> bool:
        return key in self._done

    def tally(self, key: str) -> Tally:
        tally = replace(self._tallies.get(key, Tally()))
        tally.attempts = max(tally.attempts, *self._left.get(key, [0]))
        return tally

    def finished(self, key: str) -> Record | None:
        for number in self._left.get(key, ()):
            with contextlib.suppress(FileNotFoundError):
                record: Record = self._objects.read(f"rows/{key}~{number}/{RECORD}")
                return record
        return None

    def prepare(self, job: Job) -> None:
        for each in job.uploads:
            if each.name not in self._sent:
                self._objects.send(each.path, f"inputs/{each.name}")
                self._sent.add(each.name)

    def commit(self, job: Job, about: Record) -> None:
        folder = f"rows/{job.key}~{about['attempt']}"
        # When it exists, another driver was faster, and its attempt counts.
        with contextlib.suppress(FileExistsError):
            self._objects.put_new(f"manifest/{job.key}.json", {"key": job.key, **about, "folder": folder})
        self._done.add(job.key)

    def note(self, job: Job, about: Record) -> None:
        self._tallies.setdefault(job.key, Tally()).add(about)
        with contextlib.suppress(FileExistsError):
            self._objects.put_new(f"attempts/{job.key}~{about['attempt']}.json", about)

    def skip(self, key: str, number: int) -> None:
        self._left.setdefault(key, []).append(number)

    def tidy(self) -> None:
        """Objects of attempts that nobody needs cost little, and another driver may be at work on them."""
