"""One attempt at a row on one host, and the words about it in the manifest. Knows no ledger and no queue of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from batch import overrides
from batch.answers import Unusable, failure, files_of, own_name, understood, was_interrupted
from batch.client import Client, FileChanged, Progress
from batch.files import digest, shortened
from batch.jobs import Job

PROMPT, OUTPUTS = "prompt.json", "outputs.json"
DOWNLOADED = ("output", "temp")
Record = dict[str, Any]


class Failed(RuntimeError):
    """The row failed; another attempt may succeed."""


async def attempt(
    client: Client, job: Job, prompt_id: str, folder: Callable[[], Path], progress: Progress, output_nodes: set[str]
) -> Record:
    """Runs a job, or collects what the host has made of it already, and returns what goes into the manifest.

    Args:
        prompt_id: the host's name for it.
        folder: gives an empty folder for the files, once there are any.
        progress: see Client.wait.
        output_nodes: the classes whose nodes save or show something.

    Raises: Failed, Refused, Lost, or one of CONNECTION_ERRORS.
    """
    try:
        prompt = await _sent(client, job)
        entry = await _ended(client, prompt, prompt_id, progress)
        if reason := failure(entry):
            raise Failed(reason)
        return await _collect(client, prompt, entry, folder(), output_nodes)
    except (Unusable, FileChanged) as error:
        raise Failed(str(error)) from error
    except aiohttp.ClientResponseError as error:
        raise Failed(f"The host answered {error.status} to {error.request_info.url}") from error


async def _sent(client: Client, job: Job) -> overrides.Prompt:
    """The job's workflow as the host gets it, all its files there."""
    names = {each.place: await client.upload(each.path, each.name, each.sha256) for each in job.uploads}
    return job.with_names(names)


async def _ended(client: Client, prompt: overrides.Prompt, prompt_id: str, progress: Progress) -> dict[str, Any]:
    queued = await client.is_queued(prompt_id)
    entry = await client.entry(prompt_id)
    if entry or queued:
        left = entry or await client.wait(prompt_id, progress)
        if not was_interrupted(left):
            return left
        # An earlier start was stopped and took the row from the host; that is no failure of the row.
        await client.forget(prompt_id)
    await client.queue(prompt, prompt_id)
    return await client.wait(prompt_id, progress)


async def _collect(
    client: Client, prompt: overrides.Prompt, entry: Mapping[str, Any], folder: Path, output_nodes: set[str]
) -> Record:
    files = files_of(entry)
    saved, previews = ([file for file in files if file["type"] == kind] for kind in DOWNLOADED)
    hashes: dict[str, str] = {}
    _write_json(folder / PROMPT, prompt)
    _write_json(folder / OUTPUTS, entry["outputs"])
    for file in saved or previews:
        target = folder / _free_name(own_name(file["filename"]), hashes)
        await client.download(file, target)
        hashes[target.name] = digest(target)
    elsewhere = [f"{file['type']}/{file['subfolder']}/{file['filename']}".replace("//", "/") for file in files]
    with understood("what a workflow made"):
        told = {str(node) for node, output in entry["outputs"].items() if output}
    record: Record = {"files": hashes}
    if left := [name for name in elsewhere if name.partition("/")[0] not in DOWNLOADED]:
        record["left_on_host"] = left
    quiet = {node: each["class_type"] for node, each in prompt.items() if each["class_type"] in output_nodes}
    if quiet := {node: kind for node, kind in quiet.items() if node not in told}:
        record["named_no_files"] = quiet
    return record


def _write_json(path: Path, value: Any) -> None:
    try:
        text = json.dumps(value, indent=1)
    except RecursionError as error:
        raise Unusable("The host's answer about what a workflow made is nested too deeply.") from error
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)


def _free_name(name: str, taken: Mapping[str, str]) -> str:
    """`name`, or with a number behind it; file systems may not tell capitals from small letters."""
    names = {each.lower() for each in (PROMPT, OUTPUTS, *taken)}
    path, number, candidate = Path(name), 1, name
    while candidate.lower() in names:
        number += 1
        candidate = shortened(path.stem, f"_{number}{path.suffix}")
    return candidate


def about(job: Job, versions: Record) -> Record:
    """What a manifest's line says of a row, however it ended."""
    return {
        "row": job.row.number,
        "name": job.row.name,
        "inputs": dict(job.row.overrides),
        "input_sha256": job.inputs,
        "seeds": overrides.seeds(job.prompt),
        "prompt_sha256": digest(job.prompt),
        "versions": versions,
    }


async def versions_of(client: Client) -> Record:
    """Versions and devices of a host."""
    stats = await client.get("/system_stats")
    with understood("itself"):
        system = stats["system"]
        versions = {name: system.get(f"{name}_version") for name in ("comfyui", "pytorch", "python")}
        return {**versions, "devices": [device["name"] for device in stats["devices"]]}
