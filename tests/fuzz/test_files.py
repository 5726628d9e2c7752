"""Every loader on files that are wrong in every way: one clear sentence, nothing run, no hang, little memory.

`REFATTENTION_FUZZ_FILES` says how many files each loader gets; `make fuzz` gives 2000.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import p3s_support
import pytest
import refine_support
import tryon
from messages import is_clear
from mutations import MUTATIONS, Weights, trace_of_code, write
from refattention.core.deadiff.loaded import load
from refattention.core.leffa.loader import from_state_dict
from refattention.core.models import checkpoint
from refattention.core.p3s import adapter as p3s_adapter
from refattention.core.p3s import files as p3s_files
from refattention.core.refine_by_align import adapter as refine_adapter
from refattention.core.refine_by_align import files as refine_files
from refattention_demo.deadiff_layout import DEMO_SIZE, random_weights
from sampling import model

FILES = int(os.environ.get("REFATTENTION_FUZZ_FILES", "60"))
SECONDS = 20
MEBIBYTES = 600


def deadiff_weights() -> Weights:
    return random_weights(replace(DEMO_SIZE, layers=2, vision_layers=2))


def load_deadiff(path: Path) -> Any:
    return load(checkpoint.load(path))


def load_leffa(path: Path) -> Any:
    return from_state_dict(checkpoint.load(path), path.name)


class Loader:
    """What reads a kind of file, a file that is right, and the names it may have."""

    def __init__(self, load: Callable[[Path], Any], weights: Weights, metadata: dict[str, str] | None = None) -> None:
        self.load, self.weights, self.metadata = load, weights, metadata
        self.suffixes = (".safetensors",) if metadata else (".pth", ".safetensors")

    def save(self, weights: Weights, path: Path) -> None:
        write(weights, path, self.metadata)


def adapter_loader(networks: ModuleType, files: ModuleType, adapter: Any, base: Any) -> Loader:
    def read(path: Path) -> Any:
        return networks.for_model(files.load_adapter(path), base, adapter.origin.family)

    return Loader(read, adapter.weights, {files.KEY: json.dumps(asdict(adapter.origin))})


LOADERS: dict[str, Callable[[], Loader]] = {
    "deadiff": lambda: Loader(load_deadiff, deadiff_weights()),
    "leffa": lambda: Loader(load_leffa, tryon.weights()),
    "p3s": lambda: adapter_loader(p3s_adapter, p3s_files, p3s_support.adapter(), model("sd15")),
    "refine_align": lambda: adapter_loader(
        refine_adapter, refine_files, refine_support.adapter(), refine_support.base()
    ),
}


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Fails what takes longer, even in compiled code that returns now and then."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.timeout(0 if FILES > 100 else 600)
@pytest.mark.parametrize("name", LOADERS)
def test_wrong_files(name: str, tmp_path: Path) -> None:
    loader = LOADERS[name]()
    for suffix in loader.suffixes:
        loader.save(loader.weights, tmp_path / f"right{suffix}")
        loader.load(tmp_path / f"right{suffix}")
    before, outcomes = peak_bytes(), Counter[str]()
    for case in range(FILES):
        mutate = MUTATIONS[case % len(MUTATIONS)]
        path = tmp_path / f"model{loader.suffixes[case // len(MUTATIONS) % len(loader.suffixes)]}"
        mutate(loader.weights, path, random.Random(case), loader.save)
        try:
            with time_limit(SECONDS):
                loader.load(path)
            outcomes[f"{mutate.__name__}: loaded"] += 1
        except (ValueError, RuntimeError) as error:
            assert is_clear(str(error)), f"case {case}, {mutate.__name__}: {error}"
            outcomes[f"{mutate.__name__}: refused"] += 1
        assert not trace_of_code(path).exists(), f"case {case}"
    print(dict(outcomes))
    for never in ("truncated", "huge_header", "code", "other_content", "noise"):
        assert not outcomes[f"{never}: loaded"], outcomes
    assert peak_bytes() - before < MEBIBYTES << 20
