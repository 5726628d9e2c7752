"""The same rows on a cluster: what a row costs beside one host alone, and how near many workers come to the ideal.

Workers that are many are virtual: some actors, each with many calls at a time, that sleep for as long as a row takes
and then leave an attempt as a worker does, but do not wait for the one disk that all of them have here. The hosts of
the others are real processes that answer like a ComfyUI.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from batch.jobs import Job
from batch.ledger import DONE, Ledger
from batch.table import Row
from cluster.connection import connected
from cluster.driver import Budget, Driver
from cluster.fleet import Fleet
from cluster.places import SharedFolder
from cluster.results import FolderResults
from ray_runs import Base, Run
from tqdm import tqdm

Rows = dict[str, dict[str, Any]]
ABOUT = {"workflow": "bench", "workflow_sha256": "0" * 64}
PROMPT = {"1": {"class_type": "Stub", "inputs": {"seed": 0, "text": "x" * 2000}}}
SLEEPERS = 4
MEASURED = 1000  # rows of a measurement of the driver


def measured(rows: Callable[[Path], Rows]) -> Rows:
    """What one of the two parts below measures, in some minutes that are mostly waited through."""
    folder = Path(tempfile.mkdtemp(prefix="scale-", dir="/tmp"))
    try:
        return rows(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def row(value: float, unit: str, bound: float, **detail: Any) -> dict[str, Any]:
    """A line of the results."""
    return {"value": value, "unit": unit, "bound": bound, "detail": detail}


# --- processes that answer like a ComfyUI ---


def hosts(folder: Path) -> Rows:
    """A row's cost with one worker, and the time two of them take."""
    base = Base(folder / "base")
    os.environ.update(STUB_BASE=str(base.folder), XDG_CACHE_HOME=str(folder / "cache"))
    before, cluster, after = (
        1000 * statistics.median(later - each for each, later in itertools.pairwise(starts))
        for starts in (times(folder / name, 100, 0.0, name[1:]) for name in ("a", "b1", "c"))
    )
    one, two = (
        ended - starts[0]
        for *starts, ended in (times(folder / f"two-{workers}", 12, 10.1, workers) for workers in "12")
    )
    alone = (before + after) / 2
    return {
        "scale.overhead": row(cluster - alone, "ms a row more", 20.0, alone=[before, after], cluster=cluster),
        "scale.workers.2": row(two / (one / 2), "times half of one worker's time", 1 / 0.9, one=one, two=two),
    }


def times(folder: Path, number: int, length: float, workers: str) -> list[float]:
    """When each row was started, and when the last one ended; without workers, on one host alone."""
    rows = [{"seed": each, "seconds": length} for each in range(number)]
    base = os.environ["STUB_BASE"]
    run = Run(folder, rows, host_args=f"--base-directory {base} --journal JOURNAL")
    options = ["--ray", "local", "--gpus-per-worker", "0", "--workers", workers] if workers else []
    run.finish(run.launch(dict(os.environ), *options), seconds=600)
    ended = (run.results / "manifest.jsonl").stat().st_mtime
    return [*sorted(record["started"] for record in run.done()), ended]


# --- virtual workers ---


class Sleeper:
    """Many virtual workers in one process."""

    def __init__(self, output: str, length: float) -> None:
        self._place = SharedFolder(Path(output))
        self._length = length

    async def run(self, job: Job, number: int, name: str) -> dict[str, Any]:
        started, attempt = time.time(), f"{job.key}~{number}"
        folder = self._place.begin(attempt)
        await asyncio.sleep(self._length)
        (folder / "prompt.json").write_text(json.dumps(job.prompt))
        told = {"attempt": number, "started": started, "worker": name, "versions": {}}
        return {"state": DONE, "files": {}, **told, "seconds": self._length}


class Virtual:
    """A handle of one of them."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self._actor = actor

    async def start(self) -> dict[str, Any]:
        return {"life": "1", "node_id": ""}

    async def object_info(self) -> dict[str, Any]:
        return {}

    async def fingerprint(self, classes: Iterable[str], names: Iterable[str]) -> dict[str, str]:
        return {"ComfyUI": "0.30.0"}

    async def run(self, job: Job, number: int) -> dict[str, Any]:
        outcome: dict[str, Any] = await self._actor.run.remote(job, number, self.name)
        return outcome

    async def stop(self) -> None:
        pass

    def end(self) -> None:
        pass


def virtual(folder: Path) -> Rows:
    """How near many workers come to the ideal, and what the driver can do at most."""
    with connected("local", insecure=False):
        many = {number: wave(folder / str(number), number, *rest) for number, *rest in ((256, 5.0, 6), (1000, 60.0, 3))}
        before, late, after = (driven(folder / f"driver-{each}", each) for each in (0, 99_000, 1))
    few = (before + after) / 2
    return {
        "scale.virtual.256": row(many[256], "times the ideal time, rows of 5 s", 1 / 0.95),
        "scale.virtual.1000": row(many[1000], "times the ideal time, rows of 60 s", 1 / 0.95),
        "scale.driver": row(few * 1000, "ms a row at most", 1000 / 150, rows_per_second=[1 / before, 1 / after]),
        "scale.driver.100000": row(late / few, "times a row's cost among 1,000", 1.1, rows_per_second=1 / late),
    }


def wave(folder: Path, workers: int, length: float, turns: int) -> float:
    """Time over the ideal one for `turns` rows a worker."""
    return timed(folder, workers, length, workers * turns, 0) / (length * turns)


def driven(folder: Path, before: int) -> float:
    """Seconds a row of rows that take no time, in a manifest of `before` other rows."""
    return timed(folder, 32, 0.0, MEASURED, before) / MEASURED


def timed(folder: Path, workers: int, length: float, number: int, before: int) -> float:
    """Seconds that a driver takes for so many rows."""
    import ray

    # Workers get this module's class itself: they do not have the module.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with Ledger(folder, ABOUT):
        pass
    earlier = (json.dumps(finished(each)) + "\n" for each in range(before))
    with open(folder / "manifest.jsonl", "a", encoding="utf-8") as file:
        file.writelines(earlier)
    kind = ray.remote(Sleeper).options(num_cpus=0, max_concurrency=1000)
    actors = [kind.remote(str(folder), length) for _ in range(SLEEPERS)]
    handles = [Virtual(f"virtual-{each}", actors[each % SLEEPERS]) for each in range(workers)]
    try:
        with Ledger(folder, ABOUT) as ledger, quiet_bar(number) as bar:
            return asyncio.run(drive(handles, FolderResults(ledger), bar, number))
    finally:
        for actor in actors:
            ray.kill(actor)
        shutil.rmtree(folder, ignore_errors=True)


async def drive(handles: list[Virtual], results: FolderResults, bar: Any, number: int) -> float:
    """Seconds, without the start of the actors."""
    fleet = Fleet(handles, 60, print)
    await fleet.compare((), (), "")
    warm = [Job(f"{each:032x}-0", Row(each, f"warm-{each}", {}), PROMPT) for each in range(SLEEPERS)]
    await asyncio.gather(*(handles[each].run(job, 1) for each, job in enumerate(warm)))
    begun = time.monotonic()
    summary = await Driver(fleet, results, Budget(0, 0), bar).run(jobs(number))
    assert summary.done == number
    return time.monotonic() - begun


def jobs(number: int) -> Iterator[Job]:
    for each in range(number):
        yield Job(f"{each:032x}-1", Row(each, f"row-{each}", {"1.seed": each}), PROMPT)


def finished(number: int) -> dict[str, Any]:
    """A line of the manifest as a row leaves it."""
    about = {"row": number, "inputs": {"1.seed": number}, "input_sha256": {}, "seeds": {"1.seed": number}}
    about |= {"prompt_sha256": "0" * 64, "versions": {}, "attempts": 1, "failures": 0, "losses": 0}
    return {"key": f"{number:032x}-2", **about, "state": DONE, "files": {}, "folder": f"earlier-{number}"}


@contextlib.contextmanager
def quiet_bar(number: int) -> Iterator[Any]:
    with open(os.devnull, "w", encoding="utf-8") as nothing, tqdm(total=number, file=nothing) as bar:
        yield bar
