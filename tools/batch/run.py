"""Runs the rows, one at a time on each host, and writes what came of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from tqdm import tqdm

from batch.answers import Unusable
from batch.attempt import Failed, Record, about, attempt
from batch.client import CONNECTION_ERRORS, Client, Lost, Refused
from batch.hosts import HostMissing
from batch.jobs import Job
from batch.ledger import DONE, FAILED, Ledger

# A node looks for a cancellation at each step of the sampler.
LET_GO_SECONDS = 20.0
HOST_ERRORS = (*CONNECTION_ERRORS, aiohttp.ClientError, Unusable)


@dataclass
class Host:
    """A host of a batch.

    Attributes:
        revive: called when it is gone; it returns once it answers, or raises HostMissing.
        end: kills it if it is the batch's own.
    """

    client: Client
    revive: Callable[[], Coroutine[Any, Any, None]]
    end: Callable[[], None] | None = None
    versions: Record = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """When a batch gives up.

    Attributes:
        retries: how often a row that failed is sent again.
        row_seconds: an attempt that takes longer has failed.
        failures: after so many failed rows no other is begun.
    """

    retries: int = 2
    row_seconds: float | None = None
    failures: int | None = None


class Due:
    """Which rows are to be run.

    Args:
        again: names of rows that are run though they are done.
        again_missing: run those, too, that are done but whose results are gone.

    Attributes:
        gone: key of each row that was asked about, is done and not to be run -> which of its results is gone.
    """

    def __init__(self, ledger: Ledger, again: Collection[str] = (), again_missing: bool = False) -> None:
        self._ledger = ledger
        self._again = again
        self._again_missing = again_missing
        self._missing = ledger.missing()
        self.gone: dict[str, str] = {}

    def __call__(self, job: Job) -> bool:
        if not self._ledger.is_done(job.key) or job.row.name in self._again:
            return True
        if job.key in self._missing and not self._again_missing:
            self.gone[job.key] = self._missing[job.key]
        return job.key in self._missing and self._again_missing


class Batch:
    """Sends the jobs that are due to whichever host is free.

    Args:
        object_info: what the hosts know about their node classes.
    """

    def __init__(
        self, hosts: Sequence[Host], ledger: Ledger, object_info: Mapping[str, Any], limits: Limits, due: Due
    ) -> None:
        self.hosts = hosts
        self._due = due
        self.ledger = ledger
        self.limits = limits
        self.failed = 0
        self._output_nodes = {name for name, info in object_info.items() if info.get("output_node")}
        self._given_back: list[Job] = []

    @property
    def gave_up(self) -> bool:
        """Whether too many rows failed."""
        return self.limits.failures is not None and self.failed >= self.limits.failures

    async def run(self, jobs: Iterator[Job], number: int) -> None:
        """Runs all jobs, of which there are `number`; `failed` says how many did not succeed.

        Raises: HostMissing when no host is left.
        """
        alive = list(self.hosts)
        with tqdm(total=number, unit="row", disable=None) as bar:
            while True:
                gone = [error for error in await self._share(alive, jobs, bar) if error]
                alive = [host for host in alive if host not in [each for each, _ in gone]]
                if not alive:
                    raise gone[0][1]
                # A row that a lost host gave back when the others were done already.
                if not self._given_back or self.gave_up:
                    return

    async def _share(
        self, hosts: Sequence[Host], jobs: Iterator[Job], bar: tqdm[Any]
    ) -> list[tuple[Host, HostMissing] | None]:
        tasks = [asyncio.ensure_future(self._work(host, jobs, bar)) for host in hosts]
        try:
            return await asyncio.gather(*tasks)
        finally:
            # When one fails for good, the others take their rows from their hosts before the connections close.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, host: Host, jobs: Iterator[Job], bar: tqdm[Any]) -> tuple[Host, HostMissing] | None:
        """Runs rows on one host until there are no more, or the host is gone."""
        while not self.gave_up:
            job = self._given_back.pop() if self._given_back else next(jobs, None)
            if job is None:
                return None
            try:
                if self._due(job):
                    self.failed += not await self._run(host, job, bar)
            except HostMissing as error:
                self._given_back.append(job)
                if len(self.hosts) > 1:
                    bar.write(f"{error} Its row goes to another host.")
                return host, error
            bar.update()
        return None

    async def _run(self, host: Host, job: Job, bar: tqdm[Any]) -> bool:
        started, begun = time.time(), time.monotonic()
        earlier = self.ledger.last.get(job.key, {}).get("attempts", 0)
        outcome: Record = {}
        for number in range(earlier + 1, earlier + self.limits.retries + 2):
            try:
                outcome = {"state": DONE, **await self._attempt(host, job, number, bar), "attempts": number}
                break
            except (Refused, Failed) as error:
                outcome = {"state": FAILED, "error": str(error), "attempts": number}
                bar.write(f"Row {job.row.number} ({job.row.name}), attempt {number}: {error}")
                if isinstance(error, Refused):
                    break  # it would be refused again
        times = {"started": round(started, 3), "seconds": round(time.monotonic() - begun, 3)}
        where = {"host": host.client.url} if len(self.hosts) > 1 else {}
        self.ledger.add(job.key, job.row.name, {**about(job, host.versions), **where, **outcome, **times})
        return outcome["state"] == DONE

    async def _attempt(self, host: Host, job: Job, number: int, bar: tqdm[Any]) -> Record:
        """What the manifest says of what the host made of a job.

        Raises: Refused, or Failed with the reason.
        """
        # An id that a restarted runner finds again, so that it collects what a host has made meanwhile.
        prompt_id = str(uuid.uuid5(uuid.UUID(self.ledger.run), f"{job.key}/{number}"))

        def progress(node: str, step: int, steps: int) -> None:
            kind = job.prompt.get(node, {}).get("class_type", node)
            bar.set_postfix_str(f"{job.row.name}: {kind} {step}/{steps}")

        for _ in range(self.limits.retries + 1):
            holder = await self._holder(host, prompt_id)
            for upload in job.uploads:
                if not holder.client.has_sent(upload.sha256):
                    bar.write(f"Row {job.row.number} ({job.row.name}): sends {upload.path} to {holder.client.url}")
            try:
                return await self._in_time(
                    attempt(
                        holder.client,
                        job,
                        prompt_id,
                        lambda: self.ledger.partial(job.key),
                        progress,
                        self._output_nodes,
                    )
                )
            except (asyncio.CancelledError, _TooLong) as error:
                with contextlib.suppress(*HOST_ERRORS):
                    await holder.client.cancel(prompt_id)
                if isinstance(error, _TooLong) and not await _lets_go(holder.client, prompt_id) and holder.end:
                    bar.write("The host does not let go of the row; it is started anew.")
                    holder.end()
                raise
            except CONNECTION_ERRORS:
                bar.write(f"The host {holder.client.url} is gone.")
                holder.client.forget_uploads()
                await holder.revive()
            except Lost as lost:
                bar.write(str(lost))
        raise Failed("The host was lost each time this row ran.")

    async def _holder(self, host: Host, prompt_id: str) -> Host:
        """The host that a killed runner had given this to, else `host`."""
        for other in self.hosts if self.ledger.resumed else ():
            with contextlib.suppress(*HOST_ERRORS):
                if other is not host and (
                    await other.client.is_queued(prompt_id) or await other.client.entry(prompt_id)
                ):
                    return other
        return host

    async def _in_time(self, work: Coroutine[Any, Any, Record]) -> Record:
        """Unlike asyncio.wait_for, whose error could be one of the connection."""
        task = asyncio.ensure_future(work)
        try:
            done, _ = await asyncio.wait({task}, timeout=self.limits.row_seconds)
            if not done:
                raise _TooLong(f"It took longer than {self.limits.row_seconds:g} s.")
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _lets_go(client: Client, prompt_id: str) -> bool:
    """Whether a host stops working on what was cancelled, so that the next row can begin."""
    limit = time.monotonic() + LET_GO_SECONDS
    while time.monotonic() < limit:
        with contextlib.suppress(*HOST_ERRORS):
            if not await asyncio.wait_for(client.is_queued(prompt_id), LET_GO_SECONDS):
                return True
        await asyncio.sleep(0.2)
    return False


class _TooLong(Failed):
    """The row took longer than it may."""
