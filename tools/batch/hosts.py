"""The host a batch runs on: waited for when it runs elsewhere, started and stopped when it is the batch's own."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
import time
import urllib.error
from pathlib import Path

from host_process import HostProcess, free_port

from batch.client import Client


class HostMissing(RuntimeError):
    """There is no host where one was expected."""


async def await_host(client: Client, seconds: float) -> None:
    """Returns once the host answers.

    Raises: HostMissing when it does not do so in time.
    """
    limit = time.monotonic() + seconds
    while not await client.answers():
        if time.monotonic() > limit:
            raise HostMissing(f"No ComfyUI answers at {client.url}; start one, or let --start FOLDER do it.")
        await asyncio.sleep(1)


class OwnHost:
    """A ComfyUI started for a batch. One that a killed runner left behind is taken over, with the row it works on.

    Args:
        folder: holds its main.py; it runs with the Python that runs this.
        results: where its log goes.
        arguments: more of its command line, quoted as in a shell.

    Raises: HostMissing when the folder holds no ComfyUI.
    """

    def __init__(self, folder: Path, results: Path, arguments: str) -> None:
        self._main = folder.resolve() / "main.py"
        if not self._main.is_file():
            raise HostMissing(f"There is no ComfyUI main.py in {folder}.")
        self._results = results.resolve()
        self._note = self._results / ".host.json"
        self._arguments = shlex.split(arguments)
        left = self._left_behind()
        self._pid = left["pid"] if left else None
        self._host = HostProcess(self._results / "host.log", left["port"] if left else free_port())

    @property
    def url(self) -> str:
        """Its address."""
        return self._host.url

    def revive(self) -> None:
        """Starts it unless it runs.

        Raises: HostError with the end of its log when it does not start.
        """
        running = self._answers(self._host) if self._pid else self._runs()
        if running:
            return
        self._pid = None
        self._host.stop()
        port = str(self._host.port)
        command = [sys.executable, str(self._main), "--listen", "127.0.0.1", "--port", port, "--disable-auto-launch"]
        # In a session of its own: Ctrl-C stops the runner, which then stops the host.
        self._host.launch([*command, *self._arguments], self._main.parent, os.environ, new_session=True)
        if self._host.process:
            self._note.write_text(json.dumps({"pid": self._host.process.pid, "port": self._host.port}))

    def stop(self) -> None:
        """Ends it."""
        if self._pid and self._answers(self._host):
            os.kill(self._pid, signal.SIGTERM)
        self._host.stop()
        self._note.unlink(missing_ok=True)

    def _runs(self) -> bool:
        return self._host.process is not None and self._host.process.poll() is None

    def _left_behind(self) -> dict[str, int] | None:
        try:
            left: dict[str, int] = json.loads(self._note.read_text())
            host = HostProcess(self._results / "host.log", left["port"])
        except (OSError, ValueError, KeyError):
            return None
        return left if self._answers(host) else None

    def _answers(self, host: HostProcess) -> bool:
        """Whether a host is there and is the one we started: the port may be someone else's by now."""
        try:
            arguments = host.get("/system_stats")["system"]["argv"]
        except (urllib.error.URLError, OSError, ValueError, KeyError):
            return False
        return arguments[:1] == [str(self._main)] and str(host.port) in arguments
