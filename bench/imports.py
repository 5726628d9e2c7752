"""Seconds that the pack adds to the host's start, as the host itself reports them."""

from __future__ import annotations

import re
import statistics
from typing import Any

from host import HeadlessHost


def reported_seconds(log: str) -> float:
    """The pack's line in "Import times for custom nodes".

    Raises:
        ValueError: there is none.
    """
    match = re.search(r"^\D*(\d+\.\d+) seconds.*ComfyUI-RefAttention$", log, re.MULTILINE)
    if match is None:
        raise ValueError(f"The host's log has no import time for the pack:\n{log[-2000:]}")
    return float(match[1])


def rows(repeats: int = 3) -> dict[str, dict[str, Any]]:
    """Starts the host several times."""
    seconds = []
    for _ in range(repeats):
        with HeadlessHost() as host:
            seconds.append(reported_seconds(host.log()))
    detail = {"all": seconds, "note": "the host reports tenths of a second"}
    return {"import.seconds": {"value": statistics.median(seconds), "unit": "s", "bound": 0.3, "detail": detail}}
