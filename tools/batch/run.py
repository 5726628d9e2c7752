"""Runs the rows one after another and writes what came of them."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from tqdm import tqdm

from batch import overrides
from batch.answers import describe_failure
from batch.client import CONNECTION_ERRORS, Client, Lost, Refused
from batch.ledger import DONE, FAILED, Ledger, Record, digest
from batch.table import Row


@dataclass(frozen=True)
class Job:
    """A row ready to be sent.

    Attributes:
        key: the same for the same workflow, values and files, and for nothing else in a table.
        inputs: SHA-256 of the files that were uploaded for it, by column.
    """

    key: str
    row: Row
    prompt: overrides.Prompt
    inputs: dict[str, str]


async def prepare(
    client: Client, prompt: overrides.Prompt, rows: Sequence[Row], folder: Path, about_nodes: dict[str, Any]
) -> list[Job]:
    """The jobs of a table; files it names are uploaded.

    Args:
        folder: where relative paths in the table start.
        about_nodes: what the host knows about its node classes.

    Raises: TableError before anything is sent when a column or value does not fit.
    """
    for row in rows:
        overrides.apply(prompt, row.overrides, about_nodes)
    jobs, seen = [], Counter[str]()
    for row in rows:
        values, files = dict(row.overrides), {}
        for column, path in overrides.input_files(prompt, values, about_nodes, folder):
            files[column] = digest(path)
            values[column] = await client.upload(path)
        changed = overrides.apply(prompt, values, about_nodes)
        content = digest({"prompt": changed, "files": files})
        seen[content] += 1
        jobs.append(Job(f"{content[:32]}-{seen[content]}", row, changed, files))
    return jobs


class Batch:
    """Sends jobs that are not done yet.

    Args:
        retries: how often a row that failed is sent again.
        revive: called when the host is gone; it returns once a host answers, or raises.
    """

    def __init__(self, client: Client, ledger: Ledger, retries: int, revive: Callable[[], Any]) -> None:
        self.client = client
        self.ledger = ledger
        self.retries = retries
        self.revive = revive
        self.versions: Record = {}

    async def run(self, jobs: Sequence[Job]) -> int:
        """Runs all jobs and returns how many failed."""
        self.versions = _versions(await self.client.get("/system_stats"))
        done = sum(self.ledger.is_done(job.key) for job in jobs)
        failed = 0
        with tqdm(total=len(jobs), initial=done, unit="row") as bar:
            for job in jobs:
                if not self.ledger.is_done(job.key):
                    failed += not await self._run(job, bar)
                    bar.update()
        return failed

    async def _run(self, job: Job, bar: tqdm[Any]) -> bool:
        started, begun = time.time(), time.monotonic()
        earlier = self.ledger.last.get(job.key, {}).get("attempts", 0)
        outcome: Record = {}
        for attempt in range(earlier + 1, earlier + self.retries + 2):
            try:
                outcome = {"state": DONE, "files": await self._attempt(job, attempt, bar), "attempts": attempt}
                break
            except (Refused, _Failed) as error:
                outcome = {"state": FAILED, "error": str(error), "attempts": attempt}
                bar.write(f"Row {job.row.number} ({job.row.name}), attempt {attempt}: {error}")
                if isinstance(error, Refused):
                    break  # it would be refused again
        times = {"started": round(started, 3), "seconds": round(time.monotonic() - begun, 3)}
        self._record(job, {**outcome, **times})
        return outcome["state"] == DONE

    def _record(self, job: Job, outcome: Record) -> None:
        about = {
            "row": job.row.number,
            "inputs": dict(job.row.overrides),
            "input_sha256": job.inputs,
            "seeds": overrides.seeds(job.prompt),
            "prompt_sha256": digest(job.prompt),
            "versions": self.versions,
        }
        self.ledger.add(job.key, job.row.name, {**about, **outcome})

    async def _attempt(self, job: Job, attempt: int, bar: tqdm[Any]) -> dict[str, str]:
        """File name -> SHA-256 of what the host made of a job.

        Raises: Refused, or _Failed with the reason.
        """
        # An id that a restarted runner finds again, so that it collects what the host has made meanwhile.
        prompt_id = str(uuid.uuid5(uuid.UUID(self.ledger.run), f"{job.key}/{attempt}"))
        for _ in range(self.retries + 1):
            try:
                entry = await self._result(job, prompt_id, bar)
                if entry["status"]["status_str"] != "success":
                    raise _Failed(describe_failure(entry["status"]["messages"]))
                return await self._collect(job, entry)
            except asyncio.CancelledError:
                await self.client.cancel(prompt_id)
                raise
            except CONNECTION_ERRORS:
                bar.write("The host is gone; waiting for it to come back.")
                await self.revive()
            except Lost as lost:
                bar.write(str(lost))
            except aiohttp.ClientResponseError as error:
                raise _Failed(f"The host answered {error.status} to {error.request_info.url}") from error
        raise _Failed("The host was lost each time this row ran.")

    async def _result(self, job: Job, prompt_id: str, bar: tqdm[Any]) -> dict[str, Any]:
        queued = await self.client.is_queued(prompt_id)
        entry = await self.client.entry(prompt_id)
        if entry is None and not queued:
            await self.client.queue(job.prompt, prompt_id)

        def progress(node: str, step: int, steps: int) -> None:
            kind = job.prompt.get(node, {}).get("class_type", node)
            bar.set_postfix_str(f"{job.row.name}: {kind} {step}/{steps}")

        return entry or await self.client.wait(prompt_id, progress)

    async def _collect(self, job: Job, entry: dict[str, Any]) -> dict[str, str]:
        folder = self.ledger.partial(job.key)
        (folder / "prompt.json").write_text(json.dumps(job.prompt, indent=1), encoding="utf-8")
        hashes: dict[str, str] = {}
        for file in _output_files(entry):
            target = folder / _free_name(Path(file["filename"]).name, hashes)
            await self.client.download(file, target)
            hashes[target.name] = digest(target)
        return hashes


class _Failed(RuntimeError):
    """The workflow failed while it ran."""


def _output_files(entry: dict[str, Any]) -> list[dict[str, str]]:
    """What a finished workflow saved: pictures, videos, sounds, models. Its previews, if that is nothing."""
    listed = [each for output in entry["outputs"].values() for values in output.values() for each in values]
    files = [{"subfolder": "", **each} for each in listed if isinstance(each, dict) and "filename" in each]
    saved, previews = ([file for file in files if file.get("type") == kind] for kind in ("output", "temp"))
    return saved or previews


def _free_name(name: str, taken: dict[str, str]) -> str:
    path, number, candidate = Path(name), 1, name
    while candidate in taken:
        number += 1
        candidate = f"{path.stem}_{number}{path.suffix}"
    return candidate


def _versions(stats: dict[str, Any]) -> Record:
    system = stats["system"]
    versions = {name: system.get(f"{name}_version") for name in ("comfyui", "pytorch", "python")}
    return {**versions, "devices": [device["name"] for device in stats["devices"]]}
