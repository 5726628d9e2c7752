"""The host a batch runs on: waited for when it runs elsewhere, started and stopped when it is the batch's own."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import time
import urllib.error
from pathlib import Path

import psutil
from host_process import HostProcess, free_port
from tqdm import tqdm

from batch.client import Client
from batch.files import parse_json

NOTE = ".host.json"


class HostMissing(RuntimeError):
    """There is no host where one was expected."""


async def await_host(client: Client, seconds: float) -> None:
    """Returns once the host answers; says so if that is not at once.

    Raises: HostMissing when it does not do so in time.
    """
    limit = time.monotonic() + seconds
    if seconds and not await client.answers():
        tqdm.write(f"{client.url} does not answer; waiting up to {seconds:g} s for it.", file=sys.stderr)
    while not await client.answers():
        if time.monotonic() > limit:
            raise HostMissing(f"No ComfyUI answers at {client.url}; start one, or let --start FOLDER do it.")
        await asyncio.sleep(1)


class OwnHost:
    """A ComfyUI started for a batch. One that a killed runner left behind is taken over, with the row it works on.

    Args:
        folder: holds its main.py; it runs with the Python that runs this.
        results: where its log goes, and the note by which it is found again.
        arguments: more of its command line, quoted as in a shell.

    Raises: HostMissing when the folder holds no ComfyUI, or the note is not one of ours.
    """

    def __init__(self, folder: Path, results: Path, arguments: str) -> None:
        self._main = folder.resolve() / "main.py"
        if not self._main.is_file():
            raise HostMissing(f"There is no ComfyUI main.py in {folder}.")
        self._results = results.resolve()
        self._note = self._results / NOTE
        self._arguments = shlex.split(arguments)
        left = self._left_behind()
        self._pid = left[0] if left else None
        self._host = HostProcess(self._results / "host.log", left[1] if left else free_port())

    @property
    def url(self) -> str:
        """Its address."""
        return self._host.url

    def revive(self) -> None:
        """Starts it unless it runs.

        Raises: HostError with the end of its log when it does not start.
        """
        if self._answers(self._pid, self._host) if self._pid else self._host.runs():
            return
        self._pid = None
        self._host.stop()
        self._host.log_file = self._new_log()
        port = str(self._host.port)
        command = [sys.executable, str(self._main), "--listen", "127.0.0.1", "--port", port, "--disable-auto-launch"]
        # In a session of its own: Ctrl-C stops the runner, which then stops the host.
        self._host.launch(
            [*command, *self._arguments], self._main.parent, os.environ, new_session=True, started=self._write_note
        )

    def stop(self) -> None:
        """Ends it."""
        if self._pid and self._answers(self._pid, self._host):
            psutil.Process(self._pid).terminate()
        self._host.stop()
        self._note.unlink(missing_ok=True)

    def _new_log(self) -> Path:
        """An empty file of its own for each start: the log of a host that died says why."""
        number, path = 1, self._results / "host.log"
        while True:
            try:
                path.open("x").close()
                return path
            except FileExistsError:
                number += 1
                path = self._results / f"host_{number}.log"

    def _write_note(self, pid: int) -> None:
        self._note.unlink(missing_ok=True)
        with open(self._note, "x", encoding="utf-8") as file:
            json.dump({"pid": pid, "port": self._host.port}, file)

    def _left_behind(self) -> tuple[int, int] | None:
        """Process and port of the host of a runner that was killed, if it still runs."""
        if not os.path.lexists(self._note):
            return None
        try:
            if self._note.is_symlink():
                raise ValueError("it is a link")
            note = parse_json(self._note.read_bytes())
            pid, port = note["pid"], note["port"]
            if not (type(pid) is type(port) is int and pid > 0 and 0 < port < 65536):
                raise ValueError("no process and port")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HostMissing(f"{self._note} was not made by this command ({error}); remove it.") from error
        return (pid, port) if self._answers(pid, HostProcess(self._results / "host.log", port)) else None

    def _answers(self, pid: int, host: HostProcess) -> bool:
        """Whether a host is there and is the one we started.

        Its port may be someone else's by now, and so may the number of its process: both are asked who they are.
        """
        ours = [str(self._main), "--port", str(host.port)]
        try:
            command = psutil.Process(pid).cmdline()
            arguments = host.get("/system_stats")["system"]["argv"]
            return all(word in command for word in ours) and all(word in arguments for word in ours)
        except (psutil.Error, urllib.error.URLError, OSError, ValueError, KeyError, TypeError):
            return False
