"""The part of the sampling schedule in which a method acts, and steps of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor


def check_range(start_percent: float, end_percent: float) -> None:
    """Checks that a part of the schedule does not end before it begins.

    Raises:
        ValueError: the end lies before the start.
    """
    if start_percent > end_percent:
        raise ValueError(f"start_percent ({start_percent:g}) must not be larger than end_percent ({end_percent:g}).")


@dataclass(frozen=True)
class NoiseRange:
    """A part of the schedule as noise levels, both ends included.

    Attributes:
        first, last: noise levels; sampling runs from the first, higher one to the last.
    """

    first: float
    last: float

    @classmethod
    def of(cls, sampling: Any, start_percent: float, end_percent: float) -> NoiseRange:
        """The range between two percentages of the schedule of ComfyUI's `model_sampling`."""
        return cls(sampling.percent_to_sigma(start_percent), sampling.percent_to_sigma(end_percent))

    def __contains__(self, sigma: float) -> bool:
        return self.first >= sigma >= self.last


def on_cpu(sampling: Any) -> Any:
    """A copy of ComfyUI's `model_sampling` in main memory: to read one on a device is to wait for it, each time."""
    return copy.deepcopy(sampling).to("cpu")


def step_of(level: float, sigmas: Tensor) -> int:
    """Number of the step of a schedule that a noise level belongs to; those between two levels belong to the first.

    Args:
        level: the noise level.
        sigmas: (steps + 1,), falling; on the CPU.
    """
    steps = max(len(sigmas) - 1, 1)
    # As a tensor, so that it is rounded as the schedule is.
    return int((sigmas[1:steps] >= sigmas.new_tensor(level) * (1 - 1e-6)).sum())
