"""The README shows the results that were measured last."""

from __future__ import annotations

import json
import runpy

from bootstrap import ROOT


def test_the_readme_shows_the_results_on_record() -> None:
    tool = runpy.run_path(str(ROOT / "bench" / "table.py"))
    readme = tool["README"].read_text(encoding="utf-8")
    assert tool["written"](readme, json.loads(tool["RESULTS"].read_text(encoding="utf-8"))) == readme
