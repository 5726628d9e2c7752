"""Rows on two Ray nodes of this machine, with hosts that only pretend to work."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from bootstrap import ROOT

SUPPORT = Path(__file__).resolve().parent
STUB = SUPPORT / "stub_comfyui"
COMMAND = [sys.executable, str(ROOT / "tools" / "run_workflow.py")]
STUB_WORKFLOW = {
    "1": {
        "class_type": "Stub",
        "inputs": {"seconds": 0.3, "mode": "ok", "seed": 0, "checkpoint": "model.ckpt", "image": "none.png"},
    }
}
PATIENCE = 240.0
# How soon a host must be gone whose worker is.
HOST_SECONDS = 5.0


def wait_until(true: Callable[[], Any], seconds: float = PATIENCE, what: str = "") -> Any:
    """What `true` returns as soon as it is true."""
    limit = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < limit, what or "it did not happen in time"
        time.sleep(0.05)
    return value


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits for its parent to look does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent_of(pid: int) -> int:
    """Id of a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Base:
    """A base directory of the stub: a pack, a model, and the journal of what ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pack = folder / "custom_nodes" / "stub_pack" / "nodes.py"
        self.model = folder / "models" / "checkpoints" / "model.ckpt"
        for path in (self.pack, self.model):
            path.parent.mkdir(parents=True)
            path.write_text(path.name)


class Nodes:
    """Two Ray nodes; a context manager."""

    def __init__(self, environments: Sequence[dict[str, str]]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
        self.environment = {
            **os.environ,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Others may fill this machine's memory; that is not what is tested.
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_TMPDIR": str(self.folder),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        self._environments = [json.dumps(each) for each in environments]

    def __enter__(self) -> Nodes:
        self._process = subprocess.Popen(
            [sys.executable, str(SUPPORT / "ray_nodes.py"), *self._environments],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(self.folder / "log", "wb"),
            text=True,
        )
        self.address = self._answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=120)
        shutil.rmtree(self.folder, ignore_errors=True)

    def tell(self, line: str) -> None:
        """Has a node removed or added."""
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline().strip()
        assert line, (self.folder / "log").read_text()
        return line


class Run:
    """A workflow, its table and its results.

    Args:
        rows: inputs of one node, by row.
        workflow: that of the stub, unless it is another.
        node: the node whose inputs the rows are.
        comfyui: folder with the host's main.py.
        host_args: what a host is started with.
    """

    def __init__(
        self,
        folder: Path,
        rows: Sequence[dict[str, Any]],
        workflow: dict[str, Any] = STUB_WORKFLOW,
        node: str = "1",
        comfyui: Path = STUB,
        host_args: str = "--base-directory $STUB_BASE --journal JOURNAL",
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.results, self.journal = folder, folder / "results", folder / "journal"
        (folder / "workflow.json").write_text(json.dumps(workflow))
        lines = [json.dumps({f"{node}.{name}": value for name, value in row.items()}) for row in rows]
        (folder / "rows.jsonl").write_text("\n".join(lines))
        files = [str(folder / "workflow.json"), "--table", str(folder / "rows.jsonl")]
        hosts = f"--host-args={host_args.replace('JOURNAL', str(self.journal))}"
        self.command = [*COMMAND, *files, "--start", str(comfyui), hosts]

    def start(self, nodes: Nodes, *more: str) -> subprocess.Popen[str]:
        """The command on some nodes, as a process whose output can be read."""
        return self.launch(nodes.environment, "--gpus-per-worker", "0", "--ray", nodes.address, *more)

    def launch(self, environment: dict[str, str], *more: str) -> subprocess.Popen[str]:
        """The command, where and how `more` says."""
        output = [] if "--output" in more else ["--output", str(self.results)]
        return subprocess.Popen(
            [*self.command, *output, *more],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=open(self.folder / "stderr", "ab"),
            text=True,
            # A shell that runs the tests in the background has made them deaf to Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def finish(self, process: subprocess.Popen[str], status: int = 0, seconds: float = PATIENCE) -> str:
        """What a command has printed once it has ended with this status."""
        text, _ = process.communicate(timeout=seconds)
        assert process.returncode == status, (text, self.errors())
        return text

    def errors(self) -> str:
        """What all commands have written to the error stream."""
        return (self.folder / "stderr").read_text()

    def entries(self, kind: str) -> list[dict[str, Any]]:
        """The journal's lines about hosts (`host`), rows (`row`) or files (`upload`)."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [entry for entry in map(json.loads, lines) if kind in entry]

    def starts(self) -> Counter[int]:
        """How often each row was started, by seed."""
        return Counter(entry["row"] for entry in self.entries("row"))

    def hosts(self) -> list[dict[str, Any]]:
        """Those that are alive."""
        return [entry for entry in self.entries("host") if alive(entry["pid"])]

    def records(self) -> list[dict[str, Any]]:
        """The manifest's lines about rows."""
        file = self.results / "manifest.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line) for line in lines[1:]]

    def done(self) -> list[dict[str, Any]]:
        """The records of rows that are done."""
        return [record for record in self.records() if record["state"] == "done"]

    def check(self, done: int) -> None:
        """No row is lost, committed twice or broken, and no host is left."""
        self.check_folders(done)
        for record in self.done():
            (name,) = record["files"]
            made = json.loads((self.results / record["folder"] / name).read_text())
            assert made["seed"] == record["inputs"]["1.seed"]
        wait_until(lambda: not self.hosts(), what="a host is left")

    def check_folders(self, done: int) -> None:
        """Each row has one line that says it is done, and its folder holds what the line says."""
        keys = Counter(record["key"] for record in self.done())
        assert len(keys) == done and set(keys.values()) == {1}
        folders = {path.name: path for path in self.results.iterdir() if path.is_dir() and path.name[0] != "."}
        folders.pop("logs")
        assert folders.keys() == {record["folder"] for record in self.done()}
        for record in self.done():
            folder = folders[record["folder"]]
            assert {path.name for path in folder.iterdir()} == {*record["files"], "prompt.json", "outputs.json"}


def kill(pid: int, dependents: Sequence[int]) -> None:
    """Kills a process; its dependents must be gone soon afterwards."""
    os.kill(pid, signal.SIGKILL)
    for each in dependents:
        wait_until(lambda each=each: not alive(each), HOST_SECONDS, f"process {each} outlived {pid}")
