"""Many different workflows through one server, some cancelled: none fails, memory does not grow.

`REFATTENTION_SOAK_RUNS` says how many; `make soak` gives 200, of which 50 are preceded by one that is cancelled.
"""

from __future__ import annotations

import os
import random
import re
import time
from pathlib import Path
from statistics import mean

import pytest
from mixed import NAMES, small, with_seed, write_small_pictures
from PIL import Image

from host import HeadlessHost

pytestmark = pytest.mark.e2e
RUNS = int(os.environ.get("REFATTENTION_SOAK_RUNS", 12))  # each runs once in test_archive.py
WARM_UP, WINDOW, GROWTH = 40, 50, 1.03


def resident_bytes(host: HeadlessHost) -> int:
    assert host.process is not None
    status = Path(f"/proc/{host.process.pid}/status").read_text(encoding="ascii")
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) * 1024


def cancel_in_the_middle(host: HeadlessHost, name: str, seed: int, seconds: float) -> None:
    prompt_id = host.queue(with_seed(small(name), seed))
    time.sleep(seconds)
    host.interrupt()
    entry = host.wait(prompt_id)
    kinds = [kind for kind, _ in entry["status"]["messages"]]
    assert "execution_error" not in kinds, entry["status"]["messages"]


@pytest.mark.timeout(0 if RUNS > 50 else 600)
def test_soak(host: HeadlessHost) -> None:
    write_small_pictures(host.base / "input")
    chance = random.Random(0)
    memory = []
    for run in range(RUNS):
        # Each is run once before any is run twice.
        name = NAMES[run] if run < len(NAMES) else chance.choice(NAMES)
        if run % 4 == 3:
            cancel_in_the_middle(host, chance.choice(NAMES), seed=10_000 + run, seconds=chance.uniform(0, 1.5))
        entry = host.run(with_seed(small(name), run))
        for path in host.images(entry):
            with Image.open(path) as picture:
                picture.load()
        memory.append(resident_bytes(host))
    if RUNS >= WARM_UP + 2 * WINDOW:
        first, last = mean(memory[WARM_UP : WARM_UP + WINDOW]), mean(memory[-WINDOW:])
        print(f"resident memory {first / 2**30:.3f} GiB, then {last / 2**30:.3f} GiB")
        assert last <= GROWTH * first
