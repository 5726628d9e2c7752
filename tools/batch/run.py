"""Runs the rows one after another and writes what came of them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tqdm import tqdm

from batch.attempt import Failed, Record, about, attempt, versions_of
from batch.client import CONNECTION_ERRORS, Client, Lost, Refused
from batch.jobs import Job
from batch.ledger import DONE, FAILED, Ledger


class Batch:
    """Sends jobs that are not done yet.

    Args:
        object_info: what the host knows about its node classes.
        retries: how often a row that failed is sent again.
        revive: called when the host is gone; it returns once a host answers, or raises.
    """

    def __init__(
        self,
        client: Client,
        ledger: Ledger,
        object_info: Mapping[str, Any],
        retries: int,
        revive: Callable[[], Any],
    ) -> None:
        self.client = client
        self.ledger = ledger
        self.retries = retries
        self.revive = revive
        self.versions: Record = {}
        self._output_nodes = {name for name, info in object_info.items() if info.get("output_node")}

    async def run(self, jobs: Iterable[Job], number: int) -> int:
        """Runs all jobs, of which there are `number`, and returns how many failed."""
        self.versions = await versions_of(self.client)
        failed = 0
        with tqdm(total=number, unit="row") as bar:
            for job in jobs:
                if not self.ledger.is_done(job.key):
                    failed += not await self._run(job, bar)
                bar.update()
        return failed

    async def _run(self, job: Job, bar: tqdm[Any]) -> bool:
        started, begun = time.time(), time.monotonic()
        earlier = self.ledger.last.get(job.key, {}).get("attempts", 0)
        outcome: Record = {}
        for number in range(earlier + 1, earlier + self.retries + 2):
            try:
                outcome = {"state": DONE, **await self._attempt(job, number, bar), "attempts": number}
                break
            except (Refused, Failed) as error:
                outcome = {"state": FAILED, "error": str(error), "attempts": number}
                bar.write(f"Row {job.row.number} ({job.row.name}), attempt {number}: {error}")
                if isinstance(error, Refused):
                    break  # it would be refused again
        times = {"started": round(started, 3), "seconds": round(time.monotonic() - begun, 3)}
        self.ledger.add(job.key, job.row.name, {**about(job, self.versions), **outcome, **times})
        return outcome["state"] == DONE

    async def _attempt(self, job: Job, number: int, bar: tqdm[Any]) -> Record:
        """What the manifest says of what the host made of a job.

        Raises: Refused, or Failed with the reason.
        """
        # An id that a restarted runner finds again, so that it collects what the host has made meanwhile.
        prompt_id = str(uuid.uuid5(uuid.UUID(self.ledger.run), f"{job.key}/{number}"))

        def progress(node: str, step: int, steps: int) -> None:
            kind = job.prompt.get(node, {}).get("class_type", node)
            bar.set_postfix_str(f"{job.row.name}: {kind} {step}/{steps}")

        for _ in range(self.retries + 1):
            try:
                return await attempt(
                    self.client, job, prompt_id, lambda: self.ledger.partial(job.key), progress, self._output_nodes
                )
            except asyncio.CancelledError:
                await self.client.cancel(prompt_id)
                raise
            except CONNECTION_ERRORS:
                bar.write("The host is gone; waiting for it to come back.")
                self.client.forget_uploads()
                await self.revive()
            except Lost as lost:
                bar.write(str(lost))
        raise Failed("The host was lost each time this row ran.")
