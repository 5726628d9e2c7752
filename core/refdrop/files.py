"""Recorded runs as files: safetensors, with what a model must have to be guided by them beside the tensors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..models import checkpoint
from ..models.origin import Origin
from ..patches.bank import KeysValues, KeyValueBank, Record
from .past_run import PastRun

KEY = "refattention.refdrop"
VERSION = 1


def save_run(run: PastRun, path: str | Path) -> None:
    """Writes a recorded run into a new file.

    Raises:
        FileExistsError: the name is taken.
        ValueError: the file could not say which model it belongs to.
        RuntimeError: the folder cannot be written to, or the disk is full.
    """
    if run.origin is None:
        raise ValueError(
            "RefDrop Save: the model of cache has weights, or a LoRA beside them (bypass), that a file cannot name, so "
            "nothing could check later that it fits. Record with a model and LoRAs from the usual loaders."
        )
    tensors: dict[str, Tensor] = {}
    levels = [
        {"sigma": sigma, "records": [_said(record, layer, f"{number}", tensors) for layer, record in bank.records()]}
        for number, (sigma, bank) in enumerate(run.levels.items())
    ]
    about = {
        "version": VERSION,
        "family": run.family,
        "origin": dataclasses.asdict(run.origin),
        "references": run.references,
        "roles": run.roles,
        "schedule": run.schedule,
        "sampling": run.sampling,
        "brought": run.brought,
        "levels": levels,
    }
    checkpoint.save(tensors, path, {KEY: json.dumps(about)})


def _said(record: Record, layer: Any, level: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What a file says of a record, whose tensors are added to those of the file."""
    names = []
    for pair in record.pairs:
        name = f"{level}.{len(tensors) // 2}"
        tensors[f"{name}.k"], tensors[f"{name}.v"] = (part.contiguous() for part in pair)
        names.append(name)
    (kind, number), place = layer
    chunks = [[half, *(name if isinstance(name, tuple) else ())] for half, name in record.chunks]
    return {"layer": [kind, number, place], "chunks": chunks, "grid": record.grid, "tensors": names}


def load_run(path: str | Path) -> PastRun:
    """Reads a recorded run.

    Raises:
        RuntimeError: the file is damaged, or no recorded run.
    """
    name, tensors = Path(path).name, checkpoint.load(path)
    said = checkpoint.load_metadata(path).get(KEY)
    if said is None:
        raise RuntimeError(f"{name} is no recording of RefDrop. Choose a file that RefDrop Save wrote.")
    checkpoint.require_floats(tensors, name)
    try:
        return _run(json.loads(said), tensors)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise RuntimeError(
            f"{name} is a damaged recording of RefDrop, or one of a newer version: what it says of its tensors is not "
            "what it holds. Record again, or update the pack."
        ) from error


def _run(about: Mapping[str, Any], tensors: dict[str, Tensor]) -> PastRun:
    """A run of what a file says and holds. Raises whatever happens where one is not what the other needs."""
    if about["version"] != VERSION:
        raise ValueError(about["version"])
    origin = Origin(str(about["origin"]["base"]), str(about["origin"]["patches"]))
    run = PastRun(int(about["references"]), str(about["family"]), origin)
    run.roles = [str(role) for role in about["roles"]]
    run.schedule = [float(level) for level in about["schedule"]]
    run.sampling = str(about["sampling"])
    run.brought = {role: list(some) for role, some in about.get("brought", {}).items()}  # older files lack it
    unused = set(tensors)
    for level in about["levels"]:
        bank = run.levels.setdefault(float(level["sigma"]), KeyValueBank("RefDrop Apply"))
        for said in level["records"]:
            kind, number, place = said["layer"]
            record = _record(said, run, tensors)
            bank.store(((str(kind), int(number)), int(place)), record)
            unused -= {f"{name}.{part}" for name in said["tensors"] for part in "kv"}
    if unused or not run.levels or not run.references > 0:
        raise ValueError(unused)
    run.extend(tensors.values())
    return run


def _record(said: Mapping[str, Any], run: PastRun, tensors: Mapping[str, Tensor]) -> Record:
    chunks = tuple((int(half), (str(name[0]), int(name[1])) if name else None) for half, *name in said["chunks"])
    height, width = (int(side) for side in said["grid"])
    pairs: list[KeysValues] = [(tensors[f"{name}.k"], tensors[f"{name}.v"]) for name in said["tensors"]]
    for keys, values in pairs:
        tokens_fit = keys.ndim == 3 and keys.shape == values.shape and keys.shape[1] % (height * width) == 0
        if not tokens_fit or len(keys) != len(chunks):
            raise ValueError(keys.shape)
    if not pairs or not chunks or not all(0 <= half < len(run.roles) for half, _ in chunks):
        raise ValueError(chunks)
    return Record(chunks, (height, width), pairs)
