"""What a host has painted, as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from host import HeadlessHost


def pixels(path: Path) -> np.ndarray:
    """A file's picture, (H, W, 3) of whole numbers from 0 to 255, as float64."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(np.float64)


def painted(host: HeadlessHost, workflow: dict[str, Any]) -> np.ndarray:
    """The one picture that a workflow saves, a PNG, as `pixels` gives it."""
    (path,) = host.images(host.run(workflow, timeout=300))
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
    return pixels(path)


def check_memory_stays(host: HeadlessHost, workflows: list[dict[str, Any]]) -> None:
    """From the third of some runs on, the most that the host holds does not grow."""
    peaks = []
    for workflow in workflows:
        host.reset_peak_rss()
        painted(host, workflow)
        peaks.append(host.peak_rss_bytes())
    assert peaks[-1] <= 1.02 * peaks[2], [f"{peak / 2**20:.0f} MiB" for peak in peaks]
