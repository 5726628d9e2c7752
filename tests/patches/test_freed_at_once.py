"""A patched model goes when nobody holds it any more: one in a circle of references would keep its memory, and the host
would take it for a leak and collect all garbage at each load."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from every_method import EveryMethod


@pytest.mark.parametrize(
    "name",
    [
        *("refdrop.sd15", "refdrop.flux", "refdrop.wan21", "cached.sd15", "recorded.sd15"),
        *("p3s.sd15", "adapter.sd15", "deadiff.sd15", "leffa.sd15"),
    ],
)
def test_without_the_garbage_collector(name: str) -> None:
    made: list[weakref.ref[Any]] = []

    def seen(patcher: Any) -> Any:
        made.append(weakref.ref(patcher))
        return patcher

    method = EveryMethod(torch.float32, seen)
    gc.collect()
    gc.disable()
    try:
        method.picture(name)
        assert made and all(each() is None for each in made)
    finally:
        gc.enable()
