"""Gives rows to workers, takes back what they lose, and commits each row once."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batch.attempt import about
from batch.jobs import Job
from tqdm import tqdm

from cluster.actor import DONE, LOST, TAKEN
from cluster.connection import ClusterError
from cluster.fingerprint import Fingerprint, agreed, differences
from cluster.places import Record
from cluster.results import Results, Tally
from cluster.workers import Handle, WorkerLost

STARTS = 3
STILL_SECONDS = 60.0


@dataclass(frozen=True)
class Budget:
    """How often a row may fail, and lose the worker under it, and still be tried again."""

    retries: int
    losses: int

    def spent(self, tally: Tally) -> bool:
        """Whether a row is set aside."""
        return tally.final or tally.failures > self.retries or tally.losses > self.losses


@dataclass
class Summary:
    """What a run came to.

    Attributes:
        reasons: row's name -> why it is set aside.
        left_out: worker's name -> why it takes no part.
    """

    rows: int = 0
    done: int = 0
    starts: int = 0
    losses: int = 0
    reasons: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


class Fleet:
    """The workers that may take part: those whose fingerprint is what most have.

    Args:
        patience: seconds to wait for the others once the first has started.
    """

    def __init__(self, workers: Sequence[Handle], patience: float, tell: Callable[[str], None]) -> None:
        self.workers = workers
        self.left_out: dict[str, str] = {}
        self.about: dict[str, Record] = {}
        self._patience = patience
        self._tell = tell
        self._fit: dict[str, str] = {}  # worker's name -> the life in which its fingerprint was taken
        self._agreed: Fingerprint | None = None
        self._what: tuple[Iterable[str], Iterable[str]] = ((), ())
        self._lost: Counter[str] = Counter()

    async def first(self) -> Handle:
        """A worker that has started.

        Raises: ClusterError when none can.
        """
        tasks = [asyncio.create_task(self._started(worker)) for worker in self.workers]
        try:
            for task in asyncio.as_completed(tasks):
                if worker := await task:
                    return worker
        finally:
            for waiting in tasks:
                waiting.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        reasons = "\n".join(f"{name}: {reason}" for name, reason in self.left_out.items())
        raise ClusterError(f"No worker could start.\n{reasons}")

    async def compare(self, classes: Iterable[str], names: Iterable[str], here: str) -> None:
        """Takes the fingerprints of all workers that start in time, and leaves out those that differ.

        Args:
            classes: see `fingerprint`.
            names: see `fingerprint`.
            here: id of the driver's node, whose workers decide where opinions are equally frequent.
        """
        self._what = classes, names
        tasks = {asyncio.create_task(self._print(worker)): worker for worker in self.workers}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        _, late = await asyncio.wait(tasks, timeout=self._patience)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        found = {
            number: task.result()
            for number, task in enumerate(tasks)
            if not task.cancelled() and not task.exception() and task.result() is not None
        }
        near = {
            number
            for number, worker in enumerate(self.workers)
            if self.about.get(worker.name, {}).get("node_id") == here
        }
        if not found:
            raise ClusterError("No worker could be compared with the others.")
        self._agreed = agreed(found, near)
        for number, own in found.items():
            self._judge(self.workers[number], own)

    async def ready(self, worker: Handle) -> bool:
        """Returns once a worker can take a row; False when it is left out."""
        while worker.name not in self.left_out:
            try:
                if await self._started(worker) and self._fit.get(worker.name) != self.about[worker.name]["life"]:
                    self._judge(worker, await worker.fingerprint(*self._what))
            except WorkerLost as error:
                self._lost[worker.name] += 1
                if self._lost[worker.name] == STARTS:
                    self.leave_out(worker, f"it could not be compared with the others: {error}")
            else:
                self._lost[worker.name] = 0
                return worker.name not in self.left_out
        return False

    def leave_out(self, worker: Handle, reason: str) -> None:
        """It gets no rows and its host ends."""
        self.left_out[worker.name] = reason
        self._tell(f"{worker.name} is left out: {reason}")
        worker.end()

    async def _started(self, worker: Handle) -> Handle | None:
        for number in range(STARTS):
            try:
                self.about[worker.name] = await worker.start()
                return worker
            except ClusterError:
                raise
            except (RuntimeError, OSError) as error:
                if number + 1 == STARTS:
                    self.leave_out(worker, f"it could not start: {error}")
        return None

    async def _print(self, worker: Handle) -> Fingerprint | None:
        if not await self._started(worker):
            return None
        return await worker.fingerprint(*self._what)

    def _judge(self, worker: Handle, own: Fingerprint) -> None:
        assert self._agreed is not None, "compare() comes first"
        if differs := differences(own, self._agreed):
            node = self.about[worker.name].get("node", "?")
            self.leave_out(worker, f"on {node}, " + "; ".join(differs))
        else:
            self._fit[worker.name] = self.about[worker.name]["life"]


class Driver:
    """Runs all rows on a fleet."""

    def __init__(self, fleet: Fleet, results: Results, budget: Budget, bar: tqdm[Any]) -> None:
        self._fleet = fleet
        self._results = results
        self._budget = budget
        self._bar = bar
        self._again: deque[Job] = deque()
        self._flying = 0
        self._changed = asyncio.Event()
        self._live = 0
        self.summary = Summary(left_out=fleet.left_out)

    async def run(self, jobs: Iterable[Job]) -> Summary:
        """Returns once each row is done or set aside.

        Raises: ClusterError when no worker is left.
        """
        self._fresh = self._open(jobs)
        tasks = [asyncio.create_task(self._serve(worker)) for worker in self._fleet.workers]
        watch = asyncio.create_task(self._watch())
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in (*tasks, watch):
                task.cancel()
            await asyncio.gather(*tasks, watch, return_exceptions=True)
        if self.summary.rows > self.summary.done + len(self.summary.reasons) or next(self._fresh, None):
            raise ClusterError("No worker is left to run the other rows; the same command goes on from here.")
        return self.summary

    def _open(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """The jobs that are neither done nor set aside; what an earlier driver did not hear of is committed."""
        for job in jobs:
            self.summary.rows += 1
            tally = self._results.tally(job.key)
            if not self._results.is_done(job.key) and (record := self._results.finished(job.key)):
                self._commit(job, record, tally)
            elif self._results.is_done(job.key):
                self._count(tally)
                self.summary.done += 1
                self._bar.update()
            elif self._budget.spent(tally):
                self._set_aside(job, tally)
            else:
                yield job

    async def _serve(self, worker: Handle) -> None:
        while await self._fleet.ready(worker):
            self._live += 1
            self._show()
            try:
                while job := await self._take():
                    if not await self._run(worker, job):
                        break
                else:
                    return
            finally:
                self._live -= 1
                self._show()

    async def _take(self) -> Job | None:
        """The next row; those that failed or were lost come after all others. None when all are done or set aside."""
        while True:
            job = next(self._fresh, None) or (self._again.popleft() if self._again else None)
            if job:
                self._flying += 1
                return job
            if not self._flying:
                return None
            self._changed.clear()
            await self._changed.wait()

    async def _run(self, worker: Handle, job: Job) -> bool:
        """Whether the worker is still there after an attempt at a row."""
        tally = self._results.tally(job.key)
        number = tally.attempts + 1
        try:
            outcome = await worker.run(job, number)
        except WorkerLost as error:
            outcome = {"state": LOST, "error": str(error), "attempts": number, "worker": worker.name}
        self._settle(job, outcome, tally)
        return outcome["state"] != LOST

    def _settle(self, job: Job, outcome: Record, tally: Tally) -> None:
        self._flying -= 1
        if outcome["state"] == DONE:
            self._commit(job, outcome, tally)
        elif outcome["state"] == TAKEN:
            self._results.skip(job.key, outcome["attempts"])
            self._again.append(job)
        else:
            tally.add(outcome)
            self._record(job, outcome, tally, self._results.note)
            number, what = tally.attempts, outcome["worker"]
            self._bar.write(f"Row {job.row.number} ({job.row.name}), attempt {number} on {what}: {tally.error}")
            if self._budget.spent(tally):
                self._set_aside(job, tally)
            else:
                self._again.append(job)
        if self._again or not self._flying:
            self._changed.set()

    def _commit(self, job: Job, outcome: Record, tally: Tally) -> None:
        tally.add(outcome)
        self._record(job, outcome, tally, self._results.commit)
        self._count(tally)
        self.summary.done += 1
        self._bar.update()

    def _record(self, job: Job, outcome: Record, tally: Tally, write: Callable[[Job, Record], None]) -> None:
        write(job, {**about(job, outcome.get("versions", {})), **outcome, **tally.as_record()})

    def _set_aside(self, job: Job, tally: Tally) -> None:
        self.summary.reasons[job.row.name] = (
            f"{tally.error} (failed {tally.failures} times, lost {tally.losses} workers)"
        )
        self._count(tally)
        self._bar.update()

    def _count(self, tally: Tally) -> None:
        self.summary.starts += tally.attempts
        self.summary.losses += tally.losses

    def _show(self) -> None:
        self._bar.set_postfix_str(f"{self._live} of {len(self._fleet.workers)} workers", refresh=False)

    async def _watch(self) -> None:
        """Says so when nothing goes on."""
        since = time.monotonic()
        while True:
            await asyncio.sleep(1)
            if self._live:
                since = time.monotonic()
            elif time.monotonic() - since > STILL_SECONDS:
                self._bar.write("No worker runs; waiting for the cluster to give one.")
                since = time.monotonic()


def classes_of(prompt: Mapping[str, Any]) -> set[str]:
    """The node classes of a workflow."""
    return {node["class_type"] for node in prompt.values()}
