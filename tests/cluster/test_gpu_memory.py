"""With a GPU: what a host held of its memory is free soon after its worker is killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ray_runs import HOST_SECONDS, kill, wait_until

from host import ROOT

HOLD = """
import sys, time, torch
held = torch.zeros(1 << 30, dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print("held", flush=True)
time.sleep(1000)
"""
# A worker in small: it starts a host behind a guard, as `cluster.host` does, and waits.
WORKER = """
import subprocess, sys, time
guard = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)
print(guard.pid, flush=True)
time.sleep(1000)
"""


def gpu_free() -> int:
    """Bytes of GPU memory that nobody holds, asked without holding any."""
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", "--id=0"]
    return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout) << 20


def test_memory_is_free_soon_after_a_worker_is_killed(tmp_path: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("optional: needs a GPU")
    before = gpu_free()
    guard = [sys.executable, "-I", str(ROOT / "tools" / "cluster" / "guard.py"), str(tmp_path / "scratch")]
    command = [sys.executable, "-c", WORKER, *guard, sys.executable, "-c", HOLD]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert worker.stdout
    said = sorted(worker.stdout.readline().strip() for _ in range(2))
    assert said[1] == "held" and gpu_free() < before - (1 << 30) + (64 << 20)
    kill(worker.pid, [int(said[0])])
    worker.wait()
    wait_until(lambda: gpu_free() > before - (64 << 20), HOST_SECONDS, "the GPU's memory is still held")
