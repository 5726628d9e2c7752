"""The workers of a run, and which of them may take part."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from batch.jobs import Job

from cluster.connection import ClusterError
from cluster.fingerprint import Fingerprint, agreed, differences
from cluster.places import Record

STARTS = 3
STILL_SECONDS = 60.0


class WorkerLost(ClusterError):
    """The worker died, or is not to be reached."""


class Handle(Protocol):
    """What the driver wants of a worker."""

    name: str

    async def start(self) -> Record:
        """Returns once the worker has a host, started anew if need be. Raises: RuntimeError, OSError."""

    async def object_info(self) -> dict[str, Any]:
        """See `Worker.object_info`. Raises: WorkerLost."""

    async def fingerprint(self, classes: Iterable[str], names: Iterable[str]) -> Fingerprint:
        """See `Worker.fingerprint`. Raises: WorkerLost."""

    async def run(self, job: Job, number: int) -> Record:
        """See `Worker.run`. Raises: WorkerLost."""

    async def stop(self) -> None:
        """Has the worker end its host and put its log where the results are. Raises: WorkerLost."""

    def end(self) -> None:
        """Ends the worker and with it its host, for good."""


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

    async def object_info(self) -> dict[str, Any]:
        """What the first worker that starts knows about its node classes.

        Raises: ClusterError when none can start.
        """
        for _ in range(STARTS - 1):
            with contextlib.suppress(WorkerLost):
                return await (await self._first()).object_info()
        return await (await self._first()).object_info()

    async def _first(self) -> Handle:
        tasks = {asyncio.create_task(self._started(worker)) for worker in self.workers}
        waiting = set(tasks)
        try:
            while waiting:
                ended, waiting = await asyncio.wait(waiting, timeout=STILL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    if worker := task.result():
                        return worker
                if not ended:
                    self._tell("No worker has started yet; the cluster may have no machine free that is asked for.")
        finally:
            for task in tasks:
                task.cancel()
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
        tasks = [asyncio.create_task(self._print(worker)) for worker in self.workers]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        _, late = await asyncio.wait(tasks, timeout=self._patience)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        found: dict[int, Fingerprint] = {}
        troubles = []
        for number, task in enumerate(tasks):
            if task.cancelled():
                continue
            if error := task.exception():
                troubles.append(f"{self.workers[number].name}: {type(error).__name__}: {error}")
            elif own := task.result():
                found[number] = own
        near = {
            number
            for number, worker in enumerate(self.workers)
            if self.about.get(worker.name, {}).get("node_id") == here
        }
        if not found:
            raise ClusterError("\n".join(["No worker could be compared with the others.", *troubles[:3]]))
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

    async def stop(self) -> None:
        """Ends all workers in good order, as far as they can be reached."""
        taking_part = [worker for worker in self.workers if worker.name in self._fit]
        await asyncio.gather(*(worker.stop() for worker in taking_part), return_exceptions=True)

    def leave_out(self, worker: Handle, reason: str) -> None:
        """It gets no rows and its host ends."""
        self.left_out[worker.name] = reason
        self._tell(f"{worker.name} is left out: {reason}")
        worker.end()

    async def _started(self, worker: Handle) -> Handle | None:
        for number in range(STARTS if worker.name not in self.left_out else 0):
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
