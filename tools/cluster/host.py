"""The ComfyUI of one worker: started behind a guard, so that it never outlives the worker."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from host_process import HostError, HostProcess, free_port

GUARD = Path(__file__).resolve().parent / "guard.py"
PORTS = 5
# In the paths of what Ray has sent to a machine.
SENT = "/runtime_resources/"
# Options of the host that several hosts on one machine must not share; the user's own choice wins.
PRIVATE = {"--database-url": "sqlite:///:memory:"}


class WorkerHost(HostProcess):
    """A ComfyUI that dies with the process that started it.

    Several on one machine share models, packs and input files. Each has folders of its own for what it makes: the names
    of output files are counted, and a starting host empties its folder of previews.

    Args:
        folder: holds its main.py; `~` and `$NAME` are replaced by what they mean on this machine.
        arguments: more of its command line, quoted as in a shell, replaced likewise.
        log_file: what it prints is added to it.
    """

    log_mode = "ab"
    stdin = subprocess.PIPE

    def __init__(self, folder: str, arguments: str, log_file: Path) -> None:
        super().__init__(log_file, start_timeout=600)
        self.folder = Path(expand(folder)).resolve()
        self.arguments = shlex.split(expand(arguments))
        self.scratch = ""

    def start(self) -> None:
        """Starts it, unless it runs.

        Raises: HostError with the end of its log when it does not start.
        """
        if self.runs():
            return
        if not (self.folder / "main.py").is_file():
            raise HostError(f"There is no ComfyUI main.py in {self.folder}.")
        for _ in range(PORTS):
            self.stop()
            self.port = free_port()
            # Its random name tells this host from another one that got the port first.
            self.scratch = tempfile.mkdtemp(prefix="refattention-host-")
            try:
                self.launch(self._command(), self.folder, host_environment(os.environ), new_session=True)
                if self.scratch in self._argv():
                    return
            except HostError as error:
                if "address already in use" not in str(error):
                    raise
            except (ValueError, KeyError, TypeError):  # the neighbour is no ComfyUI
                continue
        raise HostError(f"The host found {PORTS} ports of 127.0.0.1 taken one after another.")

    def stop(self) -> None:
        """Ends it and removes what it made."""
        process = self.process
        super().stop()
        if process and process.stdin:
            process.stdin.close()
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def sweep(self, before: float) -> None:
        """Removes what it made before a time: results have been fetched, and a long run would fill the disk."""
        for path in Path(self.scratch).rglob("*"):
            with contextlib.suppress(OSError):
                if path.is_file() and path.stat().st_mtime < before:
                    path.unlink()

    def _argv(self) -> list[str]:
        return list(self.get("/system_stats")["system"]["argv"])

    def _command(self) -> list[str]:
        arguments = ["--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch"]
        arguments += ["--output-directory", str(Path(self.scratch, "output")), "--temp-directory", self.scratch]
        for name, value in PRIVATE.items():
            if not any(each.partition("=")[0] == name for each in self.arguments):
                arguments += [name, value]
        python = python_of(self.folder)
        guard = [sys.executable, "-I", str(GUARD), self.scratch]
        return [*guard, python, str(self.folder / "main.py"), *arguments, *self.arguments]


def expand(text: str) -> str:
    """`text` with `~` and `$NAME` replaced."""
    return os.path.expandvars(os.path.expanduser(text))


def python_of(folder: Path) -> str:
    """The Python of a ComfyUI: of the environment inside its folder, else the one that runs this."""
    own = (folder / name / "bin" / "python" for name in (".venv", "venv"))
    return next((str(path) for path in own if path.exists()), sys.executable)


def host_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what Ray put into it: a host must not see Ray's token nor import this command's files."""
    kept = {name: value for name, value in environment.items() if not name.startswith("RAY_")}
    kept.pop("PYTHONBREAKPOINT", None)
    paths = [path for path in kept.pop("PYTHONPATH", "").split(os.pathsep) if path and SENT not in path]
    return {**kept, "PYTHONUNBUFFERED": "1", **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})}
