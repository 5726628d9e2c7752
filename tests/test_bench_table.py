"""The page of benchmarks shows the results that were measured last, and none that was measured is lost."""

from __future__ import annotations

import contextlib
import json
import runpy
from functools import partial
from pathlib import Path
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


def test_a_run_that_is_stopped_keeps_what_it_has_measured(tmp_path: Path) -> None:
    run, output = runpy.run_path(str(ROOT / "bench" / "run.py")), tmp_path / "new" / "latest.json"

    def measured(chosen: list[str] | None, **groups: dict[str, float]) -> dict[str, float]:
        def of(group: str) -> dict[str, Any]:
            if not groups[group]:
                raise KeyboardInterrupt
            return {name: {"value": value, "unit": "s", "bound": 1.0} for name, value in groups[group].items()}

        with contextlib.suppress(KeyboardInterrupt):
            run["measure"]({group: partial(of, group) for group in groups}, chosen, "a card", output)
        rows = json.loads(output.read_text())
        assert {row["device"] for row in rows.values()} == {"a card"}
        return {name: row["value"] for name, row in rows.items()}

    assert measured(["one"], one={"a": 1.0, "b": 1.0}, two={}) == {"a": 1.0, "b": 1.0}
    assert measured(["two"], one={}, two={"a": 2.0}) == {"a": 2.0, "b": 1.0}
    assert measured(None, one={"c": 3.0}, stopped={}) == {"a": 2.0, "b": 1.0, "c": 3.0}
    assert measured(None, one={"c": 4.0}) == {"c": 4.0}
