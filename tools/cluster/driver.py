"""Gives rows to workers, takes back what they lose, and commits each row once."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from batch.attempt import about
from batch.jobs import Job
from batch.ledger import DONE
from tqdm import tqdm

from cluster.connection import ClusterError
from cluster.fleet import STILL_SECONDS, Fleet, Handle, WorkerLost
from cluster.places import LOST, TAKEN, Record
from cluster.results import Results, Tally


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
        self._over = asyncio.Event()
        self._live = 0
        self.summary = Summary(left_out=fleet.left_out)

    async def run(self, jobs: Iterable[Job]) -> Summary:
        """Returns once each row is done or set aside.

        Raises: ClusterError when no worker is left.
        """
        self._fresh = self._open(jobs)
        serving = [self._serve(worker) for worker in self._fleet.workers]
        tasks = [asyncio.create_task(each) for each in (self._all(serving), self._over.wait(), self._watch())]
        try:
            # A worker that waits for its machine to come back must not keep the others' results waiting.
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if not self._over.is_set():
            raise ClusterError("No worker is left to run the other rows; the same command goes on from here.")
        return self.summary

    async def _all(self, serving: Iterable[Coroutine[Any, Any, None]]) -> None:
        await asyncio.gather(*serving)

    def _open(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """The jobs that are neither done nor set aside; what an earlier driver did not hear of is committed."""
        for job in jobs:
            self.summary.rows += 1
            tally = self._results.tally(job.key)
            if self._results.is_done(job.key):
                self._count_done(tally)
            elif record := self._results.finished(job.key):
                self._commit(job, record, tally)
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
                self._over.set()
                return None
            self._changed.clear()
            await self._changed.wait()

    async def _run(self, worker: Handle, job: Job) -> bool:
        """Whether the worker is still there after an attempt at a row."""
        tally = self._results.tally(job.key)
        number = tally.attempts + 1
        try:
            await asyncio.to_thread(self._results.prepare, job) if job.uploads else None
            outcome = await worker.run(job, number)
        except WorkerLost as error:
            outcome = {"state": LOST, "error": str(error), "attempt": number, "worker": worker.name}
        self._settle(job, outcome, tally)
        return outcome["state"] != LOST

    def _settle(self, job: Job, outcome: Record, tally: Tally) -> None:
        self._flying -= 1
        if outcome["state"] == DONE:
            self._commit(job, outcome, tally)
        elif outcome["state"] == TAKEN:
            self._results.skip(job.key, outcome["attempt"])
            self._again.append(job)
        else:
            tally.add(outcome)
            self._record(job, outcome, tally, self._results.note)
            which = f"attempt {outcome['attempt']} on {outcome['worker']}"
            self._bar.write(f"Row {job.row.number} ({job.row.name}), {which}: {tally.error}")
            if self._budget.spent(tally):
                self._set_aside(job, tally)
            else:
                self._again.append(job)
        if self._again or not self._flying:
            self._changed.set()

    def _commit(self, job: Job, outcome: Record, tally: Tally) -> None:
        tally.add(outcome)
        self._record(job, outcome, tally, self._results.commit)
        self._count_done(tally)

    def _record(self, job: Job, outcome: Record, tally: Tally, write: Callable[[Job, Record], None]) -> None:
        write(job, {**about(job, outcome.get("versions", {})), **outcome, **tally.as_record()})

    def _set_aside(self, job: Job, tally: Tally) -> None:
        self.summary.reasons[job.row.name] = (
            f"{tally.error} (failed {tally.failures} times, lost {tally.losses} workers)"
        )
        self._count(tally)

    def _count_done(self, tally: Tally) -> None:
        self.summary.done += 1
        self._count(tally)

    def _count(self, tally: Tally) -> None:
        """A row that no worker gets any more."""
        self.summary.starts += tally.attempts
        self.summary.losses += tally.losses
        self._bar.update()

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
