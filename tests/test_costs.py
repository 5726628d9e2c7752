"""The page of costs shows what its script computes."""

from __future__ import annotations

import runpy

import torch
from bootstrap import ROOT
from refattention.core.patches.memory import shape_with


def test_the_page_shows_what_the_code_counts() -> None:
    tool = runpy.run_path(str(ROOT / "bench" / "costs.py"))
    page = tool["PAGE"].read_text(encoding="utf-8")
    with torch.inference_mode():
        row = tool["refdrop_cost"](tool["CASES"][0])
        adapter = tool["adapter_cost"](tool["CASES"][0])
    assert f"| {' | '.join(row)} |" in page and f"| {' | '.join(adapter)} |" in page


def test_one_reference_picture_is_not_reserved_as_another_video() -> None:
    reference = torch.zeros(1, 16, 1, 60, 104)
    assert shape_with((1, 16, 21, 60, 104), [reference]) == [1, 16, 22, 60, 104]
    assert shape_with((2, 16, 21, 60, 104), [reference, reference, reference]) == [2, 16, 23, 60, 104]


def test_reference_pictures_are_reserved_as_pictures() -> None:
    assert shape_with((2, 4, 64, 64), [torch.zeros(1, 4, 64, 64), torch.zeros(2, 4, 32, 32)]) == [4, 4, 64, 64]
    assert shape_with((2, 4, 64, 64), []) == [2, 4, 64, 64]
