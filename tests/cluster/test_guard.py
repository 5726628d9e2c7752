"""A host ends with its worker, whatever ends the worker, and its scratch folder with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.host import WorkerHost, host_environment
from ray_runs import HOST_SECONDS, alive, kill, wait_until

from host import ROOT

GUARD = ROOT / "tools" / "cluster" / "guard.py"
# It has started another process itself, as a node pack may.
HOST = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(999)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(999)
"""
# A worker in small: it starts a host behind a guard, as `cluster.host` does, and waits.
WORKER = """
import subprocess, sys, time
guard = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)
print(guard.pid, flush=True)
time.sleep(999)
"""


class Started:
    """A worker, its guard, its host, and a process that the host started."""

    def __init__(self, scratch: Path) -> None:
        scratch.mkdir()
        guard = [sys.executable, "-I", str(GUARD), str(scratch), sys.executable, "-c", HOST]
        self.worker = subprocess.Popen([sys.executable, "-c", WORKER, *guard], stdout=subprocess.PIPE, text=True)
        assert self.worker.stdout
        lines = sorted((self.worker.stdout.readline().split() for _ in range(2)), key=len)
        self.guard, self.host, self.child = (int(each) for line in lines for each in line)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    started = Started(tmp_path / "scratch")
    yield started
    for pid in (started.worker.pid, started.guard, started.host, started.child):
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    started.worker.wait()


def test_worker_is_killed(started: Started, tmp_path: Path) -> None:
    kill(started.worker.pid, [started.host, started.child, started.guard])
    assert not (tmp_path / "scratch").exists()


def test_worker_and_its_whole_process_group_are_killed(started: Started) -> None:
    os.killpg(os.getpgid(started.worker.pid), 0)
    assert os.getpgid(started.guard) != os.getpgid(started.worker.pid) != os.getpgid(started.host)
    kill(started.worker.pid, [started.host, started.guard])


def test_guard_is_killed(started: Started) -> None:
    kill(started.guard, [started.host])


def test_guard_is_asked_to_end(started: Started) -> None:
    os.kill(started.guard, signal.SIGTERM)
    wait_until(lambda: not alive(started.host) and not alive(started.child), HOST_SECONDS)


def test_host_ends_by_itself(started: Started, tmp_path: Path) -> None:
    kill(started.host, [started.guard, started.child])
    assert not (tmp_path / "scratch").exists()


def test_host_keeps_what_is_new_and_sweeps_the_rest(tmp_path: Path) -> None:
    host = WorkerHost(str(tmp_path), "", tmp_path / "log")
    host.scratch = str(tmp_path / "scratch")
    old, new = (tmp_path / "scratch" / "output" / name for name in ("old.png", "new.png"))
    old.parent.mkdir(parents=True)
    for path in (old, new):
        path.touch()
    os.utime(old, (1, 1))
    host.sweep(before=2)
    assert new.exists() and not old.exists()


def test_host_sees_neither_rays_token_nor_this_commands_files() -> None:
    found = host_environment({"RAY_AUTH_TOKEN": "secret", "PYTHONPATH": "/tmp/ray/runtime_resources/x:/mine", "A": "1"})
    assert found == {"A": "1", "PYTHONPATH": "/mine", "PYTHONUNBUFFERED": "1"}
