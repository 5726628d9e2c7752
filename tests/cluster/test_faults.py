"""Whatever is killed: no row is lost, none is committed twice, and no host outlives its worker."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from ray_runs import Base, Nodes, Run, alive, kill, parent_of, wait_until

pytestmark = pytest.mark.e2e


def running(run: Run, without: set[int]) -> dict[str, Any] | None:
    """A row that runs now on a host that is alive, as the journal has it."""
    done = {record["inputs"]["1.seed"] for record in run.done()}
    for entry in run.entries("row"):
        if entry["mode"] == "ok" and entry["row"] not in done | without and alive(entry["pid"]):
            return entry
    return None


def test_hosts_and_workers_are_killed_and_rows_are_poison(nodes: Nodes, tmp_path: Path) -> None:
    """Three hosts and three workers die under good rows; one row fails, one kills its host, one hangs."""
    poison = [{"seed": 100 + number, "mode": mode} for number, mode in enumerate(("err", "die", "hang"))]
    run = Run(tmp_path, [*poison, *({"seed": number, "seconds": 1.5} for number in range(9))])
    process = run.start(nodes, "--retries", "1", "--losses", "1", "--row-timeout", "3")
    hit: set[int] = set()
    for what in ("host", "worker") * 3:
        entry = wait_until(lambda: running(run, hit))
        hit.add(entry["row"])
        if what == "host":
            kill(entry["pid"], [entry["guard"]])
        else:
            kill(parent_of(entry["guard"]), [entry["guard"], entry["pid"]])
    text = run.finish(process, status=1)
    run.check(done=9)
    starts = run.starts()
    assert starts[100] == starts[101] == starts[102] == 2  # one more than --retries, --losses
    # A host may have died a moment after its row was done.
    assert all(starts[number] in ((1, 2) if number in hit else (1,)) for number in range(9))
    last = {record["inputs"]["1.seed"]: record for record in run.records()}
    assert [(last[seed]["failures"], last[seed]["losses"]) for seed in (100, 101, 102)] == [(2, 0), (0, 2), (0, 2)]
    assert "told to fail" in text and "Its ComfyUI died" in text and "longer than 3 s" in text
    assert f"9 of 12 rows are done, after {sum(starts.values())} starts" in text
    assert {path.name for path in (run.results / "logs").iterdir()} == {"worker-1.log", "worker-2.log"}


def test_driver_that_is_killed_and_node_that_goes_away(nodes: Nodes, bases: list[Base], tmp_path: Path) -> None:
    run = Run(tmp_path, [{"seed": number, "seconds": 1.0} for number in range(10)])
    for done in (2, 4):
        process = run.start(nodes)
        wait_until(lambda done=done: len(run.done()) >= done)
        hosts = [entry["pid"] for entry in run.hosts()]
        kill(process.pid, hosts)
        process.wait()
    process = run.start(nodes)
    wait_until(lambda: len(run.done()) >= 6)
    nodes.tell("remove 1")
    run.finish(process)
    nodes.tell(f"add {json.dumps({'STUB_BASE': str(bases[1].folder)})}")
    run.check(done=10)
    # Two rows were in flight at each fault, at most.
    assert sum(run.starts().values()) <= 10 + 3 * 2


def test_driver_that_is_frozen_and_killed(nodes: Nodes, tmp_path: Path) -> None:
    """What its workers finish meanwhile is found, not run again."""
    run = Run(tmp_path, [{"seed": number, "seconds": 1.0} for number in range(6)])
    process = run.start(nodes)
    wait_until(lambda: len(run.entries("row")) >= 4)
    process.send_signal(signal.SIGSTOP)
    begun, partial = len(run.entries("row")), run.results / ".partial"
    wait_until(lambda: len(run.done()) + len(list(partial.glob("*~*/.record.json"))) >= begun)
    kill(process.pid, [entry["pid"] for entry in run.hosts()])
    process.wait()
    run.finish(run.start(nodes))
    run.check(done=6)
    assert set(run.starts().values()) == {1}


def test_ctrl_c_ends_the_hosts_and_says_how_to_go_on(nodes: Nodes, tmp_path: Path) -> None:
    run = Run(tmp_path, [{"seed": number, "seconds": 60.0} for number in range(4)])
    process = run.start(nodes)
    wait_until(lambda: len(run.entries("row")) >= 2)
    os.kill(process.pid, signal.SIGINT)
    run.finish(process, status=130)
    wait_until(lambda: not run.hosts(), seconds=5)
    assert "The same command goes on from here." in run.errors()
    assert not run.records()
