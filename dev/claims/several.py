"""Several cases in one run of a template whose nodes take batches: eight take little more than half as long each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from world_host import node_titled

AT_ONCE = 8


def groups(count: int) -> list[range]:
    """The numbers of all cases, those of one run together."""
    return [range(first, min(first + AT_ONCE, count)) for first in range(0, count, AT_ONCE)]


def load(graph: dict[str, Any], title: str, files: Sequence[str]) -> None:
    """Has all that takes the picture of a LoadImage take a batch of several, of one size."""
    name = node_titled(graph, title)
    first, *others = (_node("LoadImage", f"{title} {n}", image=file) for n, file in enumerate(files))
    if not others:
        graph[name] = first
        return
    graph[f"{name} 0"] = first
    batch = f"{name} 0"
    for number, other in enumerate(others, 1):
        graph[f"{name} {number}"] = other
        joined = name if number == len(others) else f"{name} to {number}"
        graph[joined] = _node("ImageBatch", title, image1=[batch, 0], image2=[f"{name} {number}", 0])
        batch = joined


def _node(class_type: str, title: str, **values: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": values, "_meta": {"title": title}}
