"""Several cases in one run of a template whose nodes take batches: eight take little more than half as long each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from world_host import node_titled

from demo_host import load_batch

AT_ONCE = 8


def groups(count: int) -> list[range]:
    """The numbers of all cases, those of one run together."""
    return [range(first, min(first + AT_ONCE, count)) for first in range(0, count, AT_ONCE)]


def load(graph: dict[str, Any], title: str, files: Sequence[str]) -> None:
    """Has all that takes the picture of a LoadImage take a batch of several, of one size."""
    load_batch(graph, node_titled(graph, title), files, title)
