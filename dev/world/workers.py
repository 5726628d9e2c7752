"""A few workers of one thread each, who train on their own for some seconds and then meet at the mean of their weights.

Threads that wait for each other at every step cost more than they bring while other programs use the machine.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as distributed
from torch import Tensor

from .config import STATE, Schedule
from .device import seconds


class Worker:
    """One of the workers; alone if the environment names no others."""

    def __init__(self, name: str) -> None:
        torch.set_num_threads(1)
        self.rank, self.count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.count > 1:
            meeting = STATE / f"meeting-{name}"
            distributed.init_process_group("gloo", f"file://{meeting}", rank=self.rank, world_size=self.count)

    @property
    def leads(self) -> bool:
        """Whether this worker writes files."""
        return self.rank == 0

    def mean(self, tensors: Iterable[Tensor]) -> None:
        """Replaces tensors by their means over all workers, in place."""
        if self.count == 1:
            return
        kept = list(tensors)
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in kept])
        distributed.all_reduce(flat)
        for tensor, part in zip(kept, (flat / self.count).split([tensor.numel() for tensor in kept]), strict=True):
            tensor.detach().copy_(part.view_as(tensor))

    def together(self, values: Sequence[float]) -> list[float]:
        """The values of the leading worker."""
        shared = torch.tensor(values, dtype=torch.float64)
        if self.count > 1:
            distributed.broadcast(shared, 0)
        return shared.tolist()


class Clock:
    """Where a stage is in its budget, which goes on after an interruption.

    Attributes:
        used: seconds of CPU time of the leading worker, as of the last meeting.
    """

    def __init__(self, worker: Worker, schedule: Schedule, used: float = 0.0) -> None:
        self.worker, self.schedule = worker, schedule
        self.before, self.used = used, used
        self.started, self.met = seconds(), time.monotonic()
        self.step = 0

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent."""
        return self.used >= self.schedule.seconds

    def rate(self) -> float:
        """The learning rate of the next step."""
        plan, share = self.schedule, min(1.0, self.used / self.schedule.seconds)
        self.step += 1
        return plan.rate * min(1.0, self.step / plan.warm_up) * falling(share, plan.hold, plan.final)

    def meet(self, tensors: Iterable[Tensor]) -> bool:
        """Brings the workers together if it is time, and says whether it did."""
        if time.monotonic() - self.met < self.schedule.average_every:
            return False
        self.worker.mean(tensors)
        self.used = self.worker.together([self.before + seconds() - self.started])[0]
        self.met = time.monotonic()
        return True


def falling(share: float, hold: float, final: float) -> float:
    """1 until `hold` of a training, then along a cosine down to `final` at its end."""
    fall = max(0.0, (share - hold) / (1 - hold))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * fall))
