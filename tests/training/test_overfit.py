"""Each training overfits on eight pictures, and its node paints them with the trained file.

With REFATTENTION_TRAIN_CHECK=1 to the end: a tenth of the loss, and 25 dB of each picture or what was reached; else
a few steps.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from overfitting import COUNT, METHODS, config_of, configured, fixed_loss, small_eyes, task_of
from painted_by_nodes import score
from training_support import train_here

IS_LONG = bool(os.environ.get("REFATTENTION_TRAIN_CHECK"))
PART, DECIBELS = 0.1, 25.0  # of the loss at most, and of each picture at least


@dataclass(frozen=True)
class Long:
    """How long and how fast a training to the end learns, from so many noises to a step.

    Attributes:
        taught: how many steps the base learns the pictures before, where the method keeps it frozen.
    """

    steps: int
    rate: float
    batch: int = 16
    taught: int = 700


LONG = {
    "leffa": Long(440, 1e-3),
    "deadiff": Long(1200, 2e-3),
    "refine": Long(800, 2e-3),
    "p3s": Long(1000, 1e-3, taught=1000),
}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("method", METHODS)
def test_each_training_overfits_on_eight_pictures(method: str, tmp_path: Path) -> None:
    long = LONG[method] if IS_LONG else Long(6, 2e-4, COUNT, taught=0)
    draws = 12 if IS_LONG else 1
    train = {"learning_rate": long.rate, "batch_size": long.batch, "warmup": min(long.steps // 2, 10)}
    with small_eyes(), torch.inference_mode(False):
        file = configured(method, tmp_path, long.taught, steps=long.steps, schedule="cosine", **train)
        before = fixed_loss(task_of(method, config_of(method, file)), draws)
        start = time.process_time()
        assert train_here(method, file) == 0
        seconds = time.process_time() - start
        trained = tmp_path / "run" / f"{method}.safetensors"
        task = task_of(method, config_of(method, file, f"models.start={trained}", "output=again"))
        after = fixed_loss(task, draws)
        scores = [score(method, task, trained, n, 40 if IS_LONG else 1) for n in range(COUNT if IS_LONG else 1)]
    print(
        f"{method}: loss {before:.4f} -> {after:.4f}, {after / before:.3f} of its start; PSNR {min(scores):.1f} to "
        f"{max(scores):.1f} dB; {long.steps} steps in {seconds:.0f} s of a core"
    )
    # So few steps show that all of it runs, and spoil nothing.
    part, decibels = (PART, DECIBELS) if IS_LONG else (1.02, -math.inf)
    assert after < part * before and math.isfinite(min(scores)) and min(scores) >= decibels
