"""The page of costs shows what its script computes."""

from __future__ import annotations

import runpy

import torch
from bootstrap import ROOT


def test_the_page_shows_what_the_code_counts() -> None:
    tool = runpy.run_path(str(ROOT / "bench" / "costs.py"))
    page = tool["PAGE"].read_text(encoding="utf-8")
    with torch.inference_mode():
        row = tool["refdrop_cost"](tool["CASES"][0])
        adapter = tool["adapter_cost"](tool["CASES"][0])
    assert f"| {' | '.join(row)} |" in page and f"| {' | '.join(adapter)} |" in page
