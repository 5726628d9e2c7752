"""What is connected to, and what is refused in one sentence."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from batch.signals import stop_like_ctrl_c
from bootstrap import ROOT
from cluster import connection
from cluster.connection import ClusterError, connected
from ray_runs import COMMAND, Base, Run, kill, wait_until

LISTEN = "0A"
LOOPBACK = re.compile("0100007F|0000000000000000FFFF00000100007F|00000000000000000000000001000000")


def children(pid: int) -> Iterator[int]:
    """Ids of a process and all that descend from it."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from children(int(child))


def listeners(pids: set[int]) -> dict[str, int]:
    """Address, in the kernel's hexadecimal form, -> process, of all TCP ports that processes listen on."""
    inodes = {}
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            if (match := re.match(r"socket:\[(\d+)\]", os.readlink(descriptor))) is not None:
                inodes[match[1]] = pid
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == LISTEN and rest[5] in inodes:
                found[local] = inodes[rest[5]]
    return found


def of_session(folder: str) -> set[int]:
    """Processes that a cluster's folder is named to, or that descend from such a one."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if folder.encode() in path.read_bytes():
                found |= set(children(int(path.parent.name)))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.e2e
def test_local_cluster_is_this_machines_own(tmp_path: Path) -> None:
    base, run = Base(tmp_path / "base"), Run(tmp_path, [{"seed": 0, "seconds": 600.0}, {"seed": 1}])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["RAY_memory_monitor_refresh_ms"] = "0"
    environment["STUB_BASE"] = str(base.folder)
    process = run.launch(environment, "--gpus-per-worker", "0", "--ray", "local", "--workers", "1")
    wait_until(lambda: run.entries("row"))
    address, folder = re.search(r"on (127\.0\.0\.1:\d+); .* in (/tmp/ray-\w+)/token", run.errors()).groups()  # type: ignore[union-attr]
    processes = set(children(process.pid)) | of_session(folder)
    try:
        check_listeners_and_a_stranger(processes, address, tmp_path, environment)
        # The host is gone soon after the driver; what Ray itself leaves waits a minute for its head.
        kill(process.pid, [run.entries("host")[0]["pid"]])
        process.wait()
    finally:
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def check_listeners_and_a_stranger(
    processes: set[int], address: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    found = listeners(processes)
    assert len(found) > 5  # of the head, the node, their agents, the dashboard, the worker and its host
    assert not [each for each in found if not LOOPBACK.match(each)]
    stranger = subprocess.run(
        [
            *COMMAND,
            str(tmp_path / "workflow.json"),
            "--output",
            str(tmp_path / "other"),
            "--start",
            ".",
            "--ray",
            address,
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert stranger.returncode == 2 and "asks for a token" in stranger.stderr


class Answer(grpc.GenericRpcHandler):
    """Says yes to everybody."""

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")


def test_cluster_that_lets_in_everybody_is_refused() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[Answer()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(ClusterError, match=r"lets in everybody.*--insecure"):
            connection._look(f"127.0.0.1:{port}", insecure=False)
        connection._look(f"127.0.0.1:{port}", insecure=True)
    finally:
        server.stop(None)


def test_unreachable_address_is_an_error_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    assert connection.SECONDS < 30
    begun = time.monotonic()
    with (
        pytest.raises(ClusterError, match=r"No Ray cluster answers at 127\.0\.0\.1:9;"),
        connected("127.0.0.1:9", False),
    ):
        pass
    monkeypatch.setattr(connection, "SECONDS", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ClusterError, match="No Ray cluster answers at"), connected(address, False):
            pass
    assert time.monotonic() - begun < 30


def test_connecting_that_hangs_ends_the_program() -> None:
    """Ray may be deaf to signals meanwhile, so nothing less would do."""
    script = (
        "import sys, time; sys.path.insert(0, 'tools'); from types import SimpleNamespace as Ray\n"
        "from cluster.connection import _within\n"
        "_within(0.2, Ray(init=lambda **options: time.sleep(600)), {}, 'there')"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and result.stderr.startswith("Ray did not connect to there within")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_slurm_clouds_and_terminals_send_is_a_stop(number: signal.Signals) -> None:
    """Also after Ray has put its own handler there."""
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(number, lambda *_: None)
        stop_like_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        signal.signal(number, signal.SIG_IGN)  # as under nohup
        stop_like_ctrl_c()
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_ray_is_asked_for_where_it_is_missing_and_not_imported_otherwise(tmp_path: Path) -> None:
    (tmp_path / "workflow.json").write_text("{}")
    script = (
        "import sys; sys.path.insert(0, 'tools'); import run_workflow\n"
        "assert not {'ray', 'grpc', 'fsspec'} & set(sys.modules)\n"
        "sys.modules['ray'] = None\n"
        "sys.exit(run_workflow.main(sys.argv[1:]))"
    )
    command = [str(tmp_path / "workflow.json"), "--output", str(tmp_path / "out"), "--start", ".", "--ray", "local"]
    result = subprocess.run([sys.executable, "-c", script, *command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.strip().startswith("Rows on a cluster need Ray: pip install 'ray[default]>=2.52'")
    assert result.stderr.count("\n") == 1
