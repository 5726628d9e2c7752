"""Seconds that the pack adds to the host's start, as the host itself reports them."""

from __future__ import annotations

import statistics
from typing import Any

from host import HeadlessHost, import_seconds


def rows(repeats: int = 3) -> dict[str, dict[str, Any]]:
    """Starts the host several times."""
    seconds = []
    for _ in range(repeats):
        with HeadlessHost() as host:
            seconds.append(import_seconds(host.log()))
    detail = {"all": seconds, "note": "the host reports tenths of a second"}
    return {"import.seconds": {"value": statistics.median(seconds), "unit": "s", "bound": 0.3, "detail": detail}}
