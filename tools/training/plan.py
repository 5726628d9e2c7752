"""Which records make up a step: a function of seed and step alone, so that a resumed run needs no memory of it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

Key = tuple[int, int, int]  # (record, seed of its draws, seed of the step's draws)


def seed_of(*parts: int | str) -> int:
    """A seed made of several numbers."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator_of(seed: int) -> torch.Generator:
    """A generator of the CPU."""
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Plan:
    """Batches of records that go together, from groups that are mixed.

    Attributes:
        groups: record numbers of each group. Every one of a group is used once before any is used again.
        mix: how many samples of each group come one after the other.
        buckets: what must be equal for records to share a batch, for each record; empty = all go together.
        step_size: samples of a step.
        seed: of the order.
    """

    groups: Sequence[Sequence[int]]
    mix: Sequence[int]
    buckets: Sequence[object]
    step_size: int
    seed: int

    def records(self, step: int) -> list[int]:
        """The records of a step, from 0, as many as the step's samples."""
        if self.buckets:
            batches = len(self._epoch(0))
            return self._epoch(step // batches)[step % batches]
        return [self._record(step * self.step_size + number) for number in range(self.step_size)]

    def keys(self, step: int) -> list[Key]:
        """The records of a step with the seeds of what is drawn for them."""
        return [
            (record, seed_of(self.seed, step, place), seed_of(self.seed, step, "step"))
            for place, record in enumerate(self.records(step))
        ]

    def _record(self, number: int) -> int:
        turn, slot = divmod(number, sum(self.mix))
        slots = [group for group, share in enumerate(self.mix) for _ in range(share)]
        group = slots[slot]
        members = self.groups[group]
        epoch, place = divmod(turn * self.mix[group] + slot - slots.index(group), len(members))
        return members[_order(len(members), seed_of(self.seed, group, epoch))[place]]

    def _epoch(self, number: int) -> list[list[int]]:
        return _batches(tuple(self.buckets), self.step_size, seed_of(self.seed, "epoch", number))


@functools.lru_cache(maxsize=16)
def _order(count: int, seed: int) -> list[int]:
    return torch.randperm(count, generator=generator_of(seed)).tolist()


@functools.lru_cache(maxsize=4)
def _batches(buckets: tuple[object, ...], size: int, seed: int) -> list[list[int]]:
    """Every record once, in batches of one bucket; the last of a bucket is filled up with its first ones."""
    members: dict[object, list[int]] = {}
    for record in _order(len(buckets), seed):
        members.setdefault(buckets[record], []).append(record)
    batches = []
    for records in members.values():
        for start in range(0, len(records), size):
            batches.append([records[number % len(records)] for number in range(start, start + size)])
    return [batches[number] for number in _order(len(batches), seed_of(seed, "batches"))]
