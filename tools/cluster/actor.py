"""A worker: one ComfyUI and one row at a time. An ordinary class, which `workers` makes an actor of."""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch.attempt import Failed, attempt, versions_of
from batch.client import CONNECTION_ERRORS, Client, Lost, Refused
from batch.jobs import Job
from batch.ledger import DONE, FAILED
from host_process import HostError

from cluster.fingerprint import FileDigests, Fingerprint, fingerprint
from cluster.host import WorkerHost
from cluster.places import LOST, TAKEN, Record, Taken, place_of

GUARD_SECONDS = 0.6
# Rows whose files a host keeps: what it has cached for equal rows names them.
KEPT = 20


class Gone(RuntimeError):
    """The host died while a row ran on it."""


@dataclass(frozen=True)
class Settings:
    """What all workers are told.

    Attributes:
        comfyui: the folder with main.py, as `WorkerHost` takes it.
        output: a folder or URL.
        run: identifies the run.
        row_timeout: seconds a row may take, None for any time.
    """

    comfyui: str
    host_arguments: str
    output: str
    run: str
    row_timeout: float | None = None


class Worker:
    """Runs rows on its own host.

    Args:
        name: of its log.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        self._name = name
        self._settings = settings
        self._life = uuid.uuid4().hex
        self._place = place_of(settings.output)
        self._host = WorkerHost(settings.comfyui, settings.host_arguments, self._place.log_file(name))
        self._loop = asyncio.new_event_loop()
        self._client: Client | None = None
        self._output_nodes: set[str] = set()
        self._versions: Record = {}
        self._begun: deque[float] = deque(maxlen=KEPT)

    def start(self) -> Record:
        """Sees to it that the host runs, and tells who this is.

        Raises: HostError when it does not start, OSError when the results' folder is not seen from here.
        """
        self._place.check(self._settings.run)
        if not self._host.runs() or self._client is None:
            self._close_client()
            self._host.start()
            self._client = self._loop.run_until_complete(Client(self._host.url, self._life).__aenter__())
        self._versions = self._loop.run_until_complete(versions_of(self._client))
        return {"life": self._life, "node": socket.gethostname(), "pid": os.getpid()}

    def object_info(self) -> dict[str, Any]:
        """What its host knows about its node classes."""
        info: dict[str, Any] = self._host.get("/object_info")
        return info

    def fingerprint(self, classes: Iterable[str], names: Iterable[str]) -> Fingerprint:
        """See `fingerprint`."""
        info = self.object_info()
        self._output_nodes = {name for name, each in info.items() if each.get("output_node")}
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refattention" / "sha256.json"
        with FileDigests(cache) as digests:
            return fingerprint(self._host.get, self._host.folder, classes, names, digests)

    def run(self, job: Job, number: int) -> Record:
        """One attempt at a row: its outcome, by `state`. Files and record of one that is done are in their place."""
        told: Record = {"attempt": number, "started": round(time.time(), 3), "worker": self._name}
        told |= {"node": socket.gethostname(), "versions": self._versions}
        begun = time.monotonic()
        try:
            limited = asyncio.wait_for(self._attempt(job, f"{job.key}~{number}"), self._settings.row_timeout)
            folder, made = self._loop.run_until_complete(limited)
            outcome = {"state": DONE, **made, **told, "seconds": round(time.monotonic() - begun, 3)}
            self._place.finish(f"{job.key}~{number}", folder, outcome)
            self._begun.append(told["started"])
            self._host.sweep(before=self._begun[0])
            return outcome
        except asyncio.TimeoutError:
            self._host.stop()
            text = f"It took longer than {self._settings.row_timeout:g} s, so its ComfyUI was ended."
            return {"state": LOST, "error": text, **told}
        except Gone as error:
            return {"state": LOST, "error": str(error), **told}
        except Taken:
            return {"state": TAKEN, **told}
        except Refused as error:
            return {"state": FAILED, "error": str(error), "final": True, **told}
        except Failed as error:
            return {"state": FAILED, "error": str(error), **told}
        except Exception as error:  # one row's trouble, whatever it is, is not that of the others
            return {"state": FAILED, "error": f"{type(error).__name__} on {told['node']}: {error}", **told}

    def stop(self) -> None:
        """Ends the host."""
        self._close_client()
        self._host.stop()
        self._place.end(self._name)

    async def _attempt(self, job: Job, name: str) -> tuple[Path, Record]:
        assert self._client is not None, "start() comes first"
        folder = self._place.begin(name)
        job = self._place.with_files(job)
        try:
            made = await attempt(self._client, job, str(uuid.uuid4()), lambda: folder, _quietly, self._output_nodes)
        except (*CONNECTION_ERRORS, Lost) as error:
            raise Gone(await self._death(error)) from error
        return folder, made

    async def _death(self, error: Exception) -> str:
        """Why the host is gone, in one sentence."""
        await asyncio.sleep(GUARD_SECONDS)  # its guard sees its end a moment later
        try:
            self._host.alive()
        except HostError as death:
            return f"Its ComfyUI died: {str(death).splitlines()[0]}"
        self._host.stop()
        return f"Its ComfyUI did not answer: {str(error) or type(error).__name__}"

    def _close_client(self) -> None:
        if self._client:
            self._loop.run_until_complete(self._client.__aexit__(None, None, None))
            self._client = None


def _quietly(node: str, step: int, steps: int) -> None:
    """Progress inside of a row is not shown."""
