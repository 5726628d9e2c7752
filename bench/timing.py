"""Two things timed side by side in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Comparison:
    """Seconds of A and B, each measurement in the order it was taken."""

    a: list[float]
    b: list[float]

    @property
    def ratio(self) -> float:
        """Median of B over median of A."""
        return statistics.median(self.b) / statistics.median(self.a)

    def detail(self) -> dict[str, float]:
        """Medians and extremes, for the record."""
        named = {"a": self.a, "b": self.b}
        return {
            f"{name}_{kind.__name__}": round(kind(times), 4)
            for name, times in named.items()
            for kind in (statistics.median, min, max)
        }


def alternate(a: Callable[[], object], b: Callable[[], object], repeats: int) -> Comparison:
    """Times A B A B …, after one unmeasured round: what slows the machine down for a while slows both."""
    times: list[list[float]] = [[], []]
    for measured in range(repeats + 1):
        for function, results in zip((a, b), times, strict=True):
            seconds = _seconds(function)
            if measured:
                results.append(seconds)
    return Comparison(*times)


def _seconds(function: Callable[[], object]) -> float:
    _synchronize()
    start = time.perf_counter()
    function()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
