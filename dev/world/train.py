"""Runs all stages of the training one after another, as processes of low priority, until all budgets are spent.

Stop it whenever you like, by any means: the next start goes on from the last checkpoints.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from .config import ROOT, STATE

WORKERS = 2
# in this order: module, and what it is called with
STAGES = ("train_vae joint", "train_text", "classifier", "encode", "train_base", "train_vision", "train_vae decoder")
# Memory that a process gives back and asks for at every step costs a third of the time.
MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "200000000", "MALLOC_ARENA_MAX": "1",
}  # fmt: skip
PAUSE = 5.0


def main() -> None:
    """Runs the stages named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", default=STAGES)
    STATE.mkdir(parents=True, exist_ok=True)
    for stage in parser.parse_args().stages:
        while run(stage, WORKERS):
            print(f"{stage} ended before its time, goes on from its last checkpoint", flush=True)
            time.sleep(PAUSE)


def run(stage: str, count: int) -> int:
    """Runs one stage once; returns the first exit status that is not 0. If one worker ends so, the others are ended."""
    meeting = STATE / f"meeting-{stage.replace(' ', '-')}"
    meeting.unlink(missing_ok=True)
    workers = [_start(stage, rank, count) for rank in range(count)]
    try:
        while any(worker.poll() is None for worker in workers) and not any(worker.poll() for worker in workers):
            time.sleep(1)
    finally:
        for worker in workers:
            worker.kill() if any(other.poll() != 0 for other in workers) else None
            worker.wait()
    return next((worker.returncode for worker in workers if worker.returncode), 0)


def _start(stage: str, rank: int, count: int) -> subprocess.Popen[bytes]:
    shared = {"RANK": str(rank), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    log = (STATE / f"{stage.replace(' ', '-')}.{rank}.log").open("ab")
    module, *arguments = stage.split()
    command = ["nice", "-n", "19", sys.executable, "-m", f"world.{module}", *arguments]
    return subprocess.Popen(command, cwd=ROOT / "dev", env={**os.environ, **MEMORY, **shared}, stdout=log, stderr=log)


if __name__ == "__main__":
    main()
