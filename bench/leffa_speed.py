"""Leffa's step against that of the published code, on the same full-size weights in the same process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import leffa_models
import leffa_operations
import torch
from leffa_models import OFFICIAL, Inputs, Published
from timing import alternate

TIMESTEPS = (601, 581)
CACHE = 1 << 40
# name -> (interval, cache in bytes, bound)
MODES = {"once": (0, 0, 0.68), "every": (1, CACHE, 0.72), "every_nocache": (1, 0, 0.84)}


def rows(repeats: int) -> dict[str, dict[str, Any]]:
    """All rows; none without the published code, which has to be put in place first (see leffa_models)."""
    if not OFFICIAL.is_dir():
        print(f"leffa: no {OFFICIAL}, so there is nothing to compare with; see bench/leffa_models.py")
        return {}
    memory = _memory()  # before this process holds models itself
    weights = leffa_models.random_weights()
    parts, published = leffa_models.load(weights), Published.from_weights(weights)
    found = {}
    with torch.inference_mode():
        for name, (interval, cache, bound) in MODES.items():
            row = _time(parts, published, interval, cache, repeats)
            found[f"leffa.{name}.vs_official.384x512"] = {**row, "bound": bound}
    return {**found, **leffa_operations.rows(768, 1024), "leffa.rss.vs_official.384x512": memory}


def _time(parts: Any, published: Published, interval: int, cache: int, repeats: int) -> dict[str, Any]:
    inputs = Inputs(384, 512)
    features = published.features(inputs, TIMESTEPS[0])
    theirs, ours = cycle(TIMESTEPS), cycle(TIMESTEPS)

    def official() -> Any:
        timestep = next(theirs)
        return published.evaluate(inputs, timestep, published.features(inputs, timestep) if interval else features)

    def observe(evaluate: Callable[[int], Any]) -> dict[str, Any]:
        for timestep in TIMESTEPS:  # fills the cache
            got = evaluate(timestep)
        want = published.evaluate(inputs, TIMESTEPS[1], published.features(inputs, TIMESTEPS[1] if interval else 601))
        times = alternate(official, lambda: evaluate(next(ours)), repeats)
        detail = {"a": "the published code's step", "b": "the pack's step", **times.detail(), "repeats": repeats}
        detail["largest difference of the predictions"] = (got - want).abs().max().item()
        return {"value": round(times.ratio, 4), "unit": "times the published step", "detail": detail}

    return leffa_models.ours(parts, inputs, interval, cache)(observe)


def _memory() -> dict[str, Any]:
    """Most resident memory of a process that loads a checkpoint file and makes one step."""
    peaks = {}
    with tempfile.TemporaryDirectory(dir=OFFICIAL.parent) as folder:
        path = Path(folder) / "virtual_tryon.pth"
        _in_a_process("write", path)
        for which in ("published", "ours"):
            peaks[which] = json.loads(_in_a_process(which, path).splitlines()[-1])
    detail = {f"{name}_GiB": round(peak / 2**30, 3) for name, peak in peaks.items()}
    ratio = round(peaks["ours"] / peaks["published"], 4)
    return {"value": ratio, "unit": "times the published peak", "bound": 0.9, "detail": detail}


def _in_a_process(which: str, path: Path) -> str:
    command = [sys.executable, str(Path(__file__).with_name("leffa_memory.py")), which, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
