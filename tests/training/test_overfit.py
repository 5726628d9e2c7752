"""Each training learns eight pictures by heart, and its node paints them with the trained file.

With REFATTENTION_TRAIN_CHECK=1 to the end, a table of what was reached is printed; else a few steps of it.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest
import torch
from by_heart import COUNT, METHODS, config_of, configured, fixed_loss, small_eyes, task_of
from painted_by_nodes import score
from training_support import train_here

IS_LONG = bool(os.environ.get("REFATTENTION_TRAIN_CHECK"))
# Steps and learning rate of each, three minutes of two cores at most
LONG = {"leffa": (300, 1e-3), "deadiff": (800, 2e-3), "refine": (400, 1e-3), "p3s": (400, 1e-3)}
# What is claimed: the denoising loss as a part of its start, and the least PSNR in dB
CLAIMED: dict[str, tuple[float, float]] = {}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("method", METHODS)
def test_eight_pictures_are_learnt_by_heart(method: str, tmp_path: Path) -> None:
    steps, rate = LONG[method] if IS_LONG else (6, 1e-3)
    file = configured(method, tmp_path, steps=steps, learning_rate=rate, warmup=min(steps // 2, 10), schedule="cosine")
    with small_eyes(), torch.inference_mode(False):
        before = fixed_loss(task_of(method, config_of(method, file)))
        start = time.process_time()
        assert train_here(method, file) == 0
        seconds = time.process_time() - start
        trained = tmp_path / "run" / f"{method}.safetensors"
        task = task_of(method, config_of(method, file, f"models.start={trained}", "output=again"))
        after = fixed_loss(task)
        scores = [score(method, task, trained, n, 20 if IS_LONG else 1) for n in range(COUNT if IS_LONG else 1)]
    print(
        f"{method}: loss {before:.4f} -> {after:.4f}, {after / before:.3f} of its start; PSNR {min(scores):.1f} to "
        f"{max(scores):.1f} dB; {steps} steps in {seconds:.0f} s of a core"
    )
    part, decibels = CLAIMED[method] if IS_LONG else (1.0, -math.inf)
    assert after < part * before and math.isfinite(min(scores)) and min(scores) >= decibels
