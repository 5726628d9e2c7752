"""A ComfyUI that runs as a child process and answers on 127.0.0.1."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


class HostError(RuntimeError):
    """The host did not start, died, or refused a request."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class HostProcess:
    """Starts, awaits and stops a ComfyUI, and talks to it over HTTP.

    Args:
        log_file: takes everything the host prints.
        port: TCP port of 127.0.0.1; a free one, chosen at the start, by default.
        start_timeout: seconds the host may take to answer.
    """

    log_mode = "wb"
    stdin = subprocess.DEVNULL

    def __init__(self, log_file: Path, port: int | None = None, start_timeout: float = 180.0) -> None:
        self.log_file = log_file
        self.port = port
        self.start_timeout = start_timeout
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Address of the running host."""
        return f"http://127.0.0.1:{self.port}"

    def launch(
        self,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        new_session: bool = False,
        started: Callable[[int], None] | None = None,
    ) -> None:
        """Runs a command that makes the host listen on `port`, and returns once it answers.

        Args:
            folder: working directory of the command.
            new_session: it does not get the terminal's Ctrl-C.
            started: called with its process id at once, long before it answers.

        Raises: HostError with the end of the log when it dies or does not answer in time.
        """
        with open(self.log_file, self.log_mode) as log:
            self.process = subprocess.Popen(
                list(command),
                cwd=folder,
                env=dict(environment),
                stdin=self.stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=new_session,
            )
        if started:
            started(self.process.pid)
        self._await_answer()

    def _await_answer(self) -> None:
        limit = time.monotonic() + self.start_timeout
        while time.monotonic() < limit:
            self.alive()
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        raise HostError(f"The host did not answer within {self.start_timeout:.0f} s.\n{self._log_end()}")

    def runs(self) -> bool:
        """Whether its process is there."""
        return self.process is not None and self.process.poll() is None

    def alive(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise HostError("The host is not running; start it with start() or a with statement.")
        if self.process.poll() is not None:
            raise HostError(f"The host ended with status {self.process.returncode}.\n{self._log_end()}")
        return self.process

    def _log_end(self) -> str:
        return "The end of its log:\n" + "\n".join(self.log().splitlines()[-40:])

    def get(self, path: str) -> Any:
        """The JSON the host answers to a GET request."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def log(self) -> str:
        """Everything the host has printed so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.exists() else ""

    def stop(self) -> None:
        """Ends the host: asks first, then kills."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
