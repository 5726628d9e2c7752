"""The page of benchmarks shows the results that were measured last."""

from __future__ import annotations

import json
import runpy
from typing import Any

import pytest
from bootstrap import ROOT

TOOL = runpy.run_path(str(ROOT / "bench" / "table.py"))
RESULTS: dict[str, Any] = json.loads(TOOL["RESULTS"].read_text(encoding="utf-8"))


def test_the_page_shows_the_results_on_record() -> None:
    page = TOOL["PAGE"].read_text(encoding="utf-8")
    assert TOOL["written"](page, RESULTS) == page


def test_every_row_beyond_its_bound_is_explained() -> None:
    listed = {line.split("`")[1] for line in TOOL["beyond"](RESULTS).splitlines() if "`" in line}
    assert listed == {name for name, row in RESULTS.items() if row["value"] > row["bound"]}


def test_a_row_without_title_or_reason_is_refused() -> None:
    slow = {"import.seconds": {"value": 2.0, "unit": "s", "bound": 1.0, "detail": {}}}
    with pytest.raises(KeyError, match="no title"):
        TOOL["table"]({"a row of tomorrow": slow["import.seconds"]})
    with pytest.raises(KeyError, match="no reason"):
        TOOL["beyond"](slow)
    assert TOOL["beyond"]({}) == "None."
