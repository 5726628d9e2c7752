"""The converter against the editor's own page, over every template of the package that ComfyUI installs."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from setup_browser import find_browser, missing_reason

from workflow import WorkflowFormatError, ui_to_api

SCRIPT = Path(__file__).with_name("editor_prompts.py")
PACKAGES = ("comfyui_workflow_templates_json", "comfyui_workflow_templates_core")
# What a refusal may be about: everything else has to be equal.
REASONS = (
    r"Node \S+: the host has no node '\S+'; install its pack",
    r"Node \S+ \(Load3D\w*\): image is drawn by the editor's page",
    r"Node \S+: \S+ is set by a primitive node",
)
Graphs = dict[str, dict[str, Any]]


def official_templates() -> Graphs:
    """The graphs of the installed packages, by file name."""
    found: Graphs = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(folder).rglob("*.json")):
                graph = json.loads(path.read_text(encoding="utf-8"))
                if isinstance(graph, dict) and "nodes" in graph:
                    found[path.stem] = graph
    return found


def what_runs(prompt: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """The nodes that output nodes need: the editor also lists what is in a bypassed subgraph in another one."""
    seen: dict[str, Any] = {}
    waiting = [node for node, each in prompt.items() if info[each["class_type"]].get("output_node")]
    while waiting:
        if (node := waiting.pop()) in seen or node not in prompt:
            continue
        seen[node] = {key: prompt[node][key] for key in ("class_type", "inputs")}
        waiting += [value[0] for value in prompt[node]["inputs"].values() if isinstance(value, list)]
    return seen


# Two minutes on a core that others use, too; the host is started with all of its nodes.
@pytest.mark.timeout(1500)
@pytest.mark.e2e
def test_every_official_template_is_what_the_editor_makes_of_it_or_refused_by_name(tmp_path: Path) -> None:
    if find_browser() is None:
        pytest.skip(missing_reason())
    graphs = official_templates()
    assert len(graphs) > 400
    source, target = tmp_path / "graphs.json", tmp_path / "prompts.json"
    source.write_text(json.dumps(graphs), encoding="utf-8")
    subprocess.run([sys.executable, SCRIPT, source, target], check=True, timeout=1400)
    made = json.loads(target.read_text(encoding="utf-8"))
    counts, different = Counter[str](), []
    for name, graph in graphs.items():
        try:
            ours = ui_to_api(graph, made["info"])
        except WorkflowFormatError as error:
            assert any(re.match(reason, str(error)) for reason in REASONS), (name, error)
            counts["refused"] += 1
            continue
        if what_runs(ours, made["info"]) == what_runs(made["prompts"][name], made["info"]):
            counts["equal"] += 1
        else:
            different.append(name)
    print(f"official templates: {dict(counts)}, different: {different}")
    assert not different and counts["refused"] <= len(graphs) // 50
