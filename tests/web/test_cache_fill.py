"""RefDrop Apply shows in the editor how full its cache is, in both renderers."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from frontend import Frontend

from host import ROOT

pytestmark = pytest.mark.e2e
SMALL = {
    "EmptyLatentImage": {"width": 128, "height": 96},
    "ImageScaleToTotalPixels": {"megapixels": 0.02},
    "KSampler": {"steps": 2},
}
# The text on a node, once it is another than after so many reuses.
SHOWN = """
([id, reused]) => window.app.graph.getNodeById(id).widgets.map((each) => each.value)
    .find((value) => /looks at the reference/.test(value) && !reused.some((each) => value.includes(` ${each} of them`)))
"""


def test_the_fill_is_shown_on_the_node(frontend: Frontend) -> None:
    """After each run, also when the node itself is not executed again; it is no part of the saved workflow."""
    graph = json.loads((ROOT / "workflows" / "refdrop.json").read_text(encoding="utf-8"))
    frontend.open(graph)
    ids = {node["type"]: node["id"] for node in graph["nodes"]}
    for kind, values in SMALL.items():
        for name, value in values.items():
            frontend.set_widget(ids[kind], name, value)
    first = 1 if frontend.renderer == "classic" else 11  # what was sampled before is not sampled again
    saved = own_widgets(frontend)
    reused = []
    for seed in (first, first + 1):
        frontend.set_widget(ids["KSampler"], "seed", seed)
        frontend.queue()
        text = frontend.page.wait_for_function(SHOWN, arg=[ids["RefDropApply"], reused]).json_value()
        reused.append(
            int(
                re.fullmatch(r"2 looks at the reference kept \(5 of \d+ MiB\), (\d+) of them used again so far.", text)[
                    1
                ]
            )
        )
    assert reused[1] == reused[0] + 2
    frontend.page.get_by_text(re.compile("looks at the reference kept")).first.wait_for()
    frontend.screenshot(ROOT / "out" / "web" / f"fill_{frontend.renderer}.png")
    assert own_widgets(frontend) == saved


def own_widgets(frontend: Frontend) -> list[Any]:
    return [node["widgets_values"] for node in frontend.graph()["nodes"] if node["type"] == "RefDropApply"]
