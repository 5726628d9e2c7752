"""The driver's side of a worker: an actor that Ray starts again, on any machine, as often as it dies."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Iterable
from typing import Any

import ray
from batch.jobs import Job
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError, RuntimeEnvSetupError

from cluster.actor import Settings, Worker
from cluster.connection import ClusterError
from cluster.fingerprint import Fingerprint
from cluster.fleet import WorkerLost
from cluster.places import Record

RESTART_SECONDS = 0.5
# Beyond a row's own limit, for what Ray and the worker need around it.
GRACE_SECONDS = 60.0
STOP_SECONDS = 15.0


class Actor:
    """A worker as Ray's. Ray looks for coroutines among an actor's methods, even private ones, and would have calls
    overlap if there were any; so this holds a worker and is none."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._told = name, settings

    def start(self) -> Record:
        return {**self._worker.start(), "node_id": ray.get_runtime_context().get_node_id()}

    def object_info(self) -> dict[str, Any]:
        return self._worker.object_info()

    def fingerprint(self, classes: Iterable[str], names: Iterable[str]) -> Fingerprint:
        return self._worker.fingerprint(classes, names)

    def run(self, job: Job, number: int) -> Record:
        return self._worker.run(job, number)

    def stop(self) -> None:
        self._worker.stop()

    @functools.cached_property
    def _worker(self) -> Worker:
        """Made when it is asked for: why an actor could not be made, Ray does not say."""
        return Worker(*self._told)


class RayWorker:
    """A worker that is an actor.

    Args:
        options: Ray's options for the actor: GPUs, kind of accelerator.
    """

    def __init__(self, name: str, settings: Settings, options: dict[str, Any]) -> None:
        self.name = name
        self._row_timeout = settings.row_timeout
        self._actor: Any = (
            ray.remote(Actor).options(max_restarts=-1, max_task_retries=0, **options).remote(name, settings)
        )

    async def start(self) -> Record:
        while True:
            try:
                about: Record = await self._actor.start.remote()
                return about
            except RayTaskError as error:
                raise RuntimeError(f"{type(error.cause).__name__}: {error.cause}") from error
            except RuntimeEnvSetupError as error:
                raise ClusterError(f"Ray cannot send this command's files to {self.name}: {error}") from error
            except RayActorError:
                await asyncio.sleep(RESTART_SECONDS)  # Ray is starting it again, as soon as it has a place for it

    async def object_info(self) -> dict[str, Any]:
        info: dict[str, Any] = await self._call("object_info")
        return info

    async def fingerprint(self, classes: Iterable[str], names: Iterable[str]) -> Fingerprint:
        found: Fingerprint = await self._call("fingerprint", sorted(classes), sorted(names))
        return found

    async def run(self, job: Job, number: int) -> Record:
        limit = None if self._row_timeout is None else self._row_timeout + GRACE_SECONDS
        outcome: Record = await self._call("run", job, number, limit=limit)
        return outcome

    async def stop(self) -> None:
        await self._call("stop", limit=STOP_SECONDS)

    def end(self) -> None:
        with contextlib.suppress(Exception):
            ray.kill(self._actor)

    async def _call(self, method: str, *arguments: Any, limit: float | None = None) -> Any:
        try:
            return await asyncio.wait_for(getattr(self._actor, method).remote(*arguments), limit)
        except RayTaskError as error:
            raise WorkerLost(f"Its worker failed: {type(error.cause).__name__}: {error.cause}") from error
        except ActorDiedError as error:
            raise WorkerLost("Its worker died.") from error
        except RayError as error:  # its node is gone, or out of memory
            raise WorkerLost(f"Its worker was lost ({type(error).__name__}).") from error
        except asyncio.TimeoutError as error:
            ray.kill(self._actor, no_restart=False)
            raise WorkerLost(f"Its worker did not answer within {limit:.0f} s.") from error


def actor_options(gpus: float, accelerator: str | None) -> dict[str, Any]:
    """Ray's options for each worker."""
    options: dict[str, Any] = {"num_cpus": 1, "scheduling_strategy": "SPREAD"}
    if gpus:
        options["num_gpus"] = gpus
    if accelerator:
        options["accelerator_type"] = accelerator
    return options


def number_of(wanted: str, gpus: float) -> int:
    """How many workers --workers means on this cluster.

    Raises: ClusterError when the cluster cannot have one.
    """
    found = ray.cluster_resources()
    if gpus and not found.get("GPU"):
        raise ClusterError("No machine of the cluster has a GPU; --gpus-per-worker 0 runs ComfyUI on the CPU.")
    if wanted != "auto":
        return int(wanted)
    machines = sum(node["Alive"] for node in ray.nodes())
    return max(1, int(found["GPU"] / gpus) if gpus else machines)
