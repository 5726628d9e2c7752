"""Every published template: offered by the host, and the same workflow as its API file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demo_host import load_workflow
from host import PACK_NAME, ROOT, HeadlessHost
from workflow import ui_to_api

pytestmark = pytest.mark.e2e
TEMPLATES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))


def without_titles(workflow: dict[str, Any]) -> dict[str, Any]:
    return {name: {key: node[key] for key in ("class_type", "inputs")} for name, node in workflow.items()}


def test_host_offers_them_with_pictures(host: HeadlessHost) -> None:
    assert sorted(host.get("/workflow_templates")[PACK_NAME]) == TEMPLATES
    assert TEMPLATES == sorted(path.stem for path in (ROOT / "workflows" / "api").glob("*.json"))
    assert TEMPLATES == sorted(path.stem for path in (ROOT / "workflows").glob("*.jpg"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_is_the_api_workflow(host: HeadlessHost, name: str) -> None:
    template = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    assert ui_to_api(template, host.object_info()) == without_titles(load_workflow(name))


@pytest.mark.parametrize("name", TEMPLATES)
def test_links_are_consistent(name: str) -> None:
    """What the editor relies on when it opens the file: both ends of every link know it."""
    template = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in template["nodes"]}
    for link, origin, out_slot, target, in_slot, kind in template["links"]:
        output, target_input = nodes[origin]["outputs"][out_slot], nodes[target]["inputs"][in_slot]
        assert link in output["links"] and target_input["link"] == link
        assert output["type"] == target_input["type"] == kind
    assert template["last_node_id"] == max(nodes)


@pytest.mark.parametrize("path", sorted((ROOT / "workflows" / "api" / "families").glob("*.json")), ids=lambda p: p.stem)
def test_workflows_of_other_families_fit_the_hosts_nodes(host: HeadlessHost, path: Path) -> None:
    """Models of these families are not at hand to run them: nodes, inputs, choices and types of links are checked."""
    workflow, info = json.loads(path.read_text(encoding="utf-8")), host.object_info()
    for node in workflow.values():
        accepted = info[node["class_type"]]["input"]
        specs = {**accepted["required"], **accepted.get("optional", {})}
        assert set(accepted["required"]) <= set(node["inputs"]) <= set(specs)
        for name, value in node["inputs"].items():
            kind, *options = specs[name]
            if isinstance(value, list):
                source, slot = value
                assert info[workflow[source]["class_type"]]["output"][slot] == kind
            elif name in ("type", "sampler_name", "scheduler", "blocks"):
                assert value in (kind if isinstance(kind, list) else options[0]["options"])
