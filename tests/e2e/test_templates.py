"""Every published template: offered by the host, and the same workflow as its API file."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlparse

import pytest
from graphs import BLUEPRINTS, TEMPLATES, nodes_of, read, without_titles

from demo_host import load_workflow
from host import PACK_NAME, ROOT, HeadlessHost
from workflow import ui_to_api, widget_inputs

pytestmark = pytest.mark.e2e
# What the editor takes for a model's file and offers to download.
MODEL_ENDINGS = (".safetensors", ".sft", ".ckpt", ".pth", ".pt")
DOWNLOAD_HOSTS = {"huggingface.co", "civitai.com"}
# The files of these nodes are the user's own.
OWN_FILES = {"P3SLoad", "RefineAlignLoad", "RefDropLoad"}


def test_host_offers_them_with_pictures(host: HeadlessHost) -> None:
    assert set(host.get("/workflow_templates")[PACK_NAME]) == set(TEMPLATES)
    assert set(TEMPLATES) == {path.stem for path in (ROOT / "workflows" / "api").glob("*.json")}
    assert set(TEMPLATES) == {path.stem for path in (ROOT / "workflows").glob("*.jpg")}


def test_every_node_stands_in_one(host: HeadlessHost) -> None:
    info = host.object_info()
    own = {name for name, node in info.items() if node["python_module"] == f"custom_nodes.{PACK_NAME}"}
    assert own and not own - {node["type"] for path in TEMPLATES.values() for node in read(path)["nodes"]}


@pytest.mark.parametrize("path", [*TEMPLATES.values(), *BLUEPRINTS.values()], ids=lambda path: path.stem)
def test_models_can_be_downloaded(host: HeadlessHost, path: Path) -> None:
    """Each node that names a file of published weights says where it comes from and where it goes."""
    info, folders = host.object_info(), host.get("/models")
    for node in nodes_of(read(path)):
        models = node["properties"].get("models", [])
        for model in models:
            assert urlparse(model["url"]).scheme == "https" and urlparse(model["url"]).hostname in DOWNLOAD_HOSTS
            assert model["url"].endswith(MODEL_ENDINGS) and model["directory"] in folders
        inputs = widget_inputs(node, info[node["type"]]) if node["type"] in info else {}
        combos = {name for name, value in inputs.items() if "_name" in name and str(value).endswith(MODEL_ENDINGS)}
        named = set() if node["type"] in OWN_FILES else {inputs[name] for name in combos}
        assert {model["name"] for model in models} == named


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_is_the_api_workflow(host: HeadlessHost, name: str) -> None:
    assert ui_to_api(read(TEMPLATES[name]), host.object_info()) == without_titles(load_workflow(name))


@pytest.mark.parametrize("name", TEMPLATES)
def test_links_are_consistent(name: str) -> None:
    """What the editor relies on when it opens the file: both ends of every link know it."""
    template = read(TEMPLATES[name])
    nodes = {node["id"]: node for node in template["nodes"]}
    for link, origin, out_slot, target, in_slot, kind in template["links"]:
        output, target_input = nodes[origin]["outputs"][out_slot], nodes[target]["inputs"][in_slot]
        assert link in output["links"] and target_input["link"] == link
        assert output["type"] == kind and target_input["type"] in (kind, "*")
    assert template["last_node_id"] == max(nodes)


def test_notes_can_be_read() -> None:
    """Nodes 2.0 writes `code` in blue, which the brown of a note swallows; addresses are links."""
    notes = [node for path in TEMPLATES.values() for node in read(path)["nodes"] if node["type"] == "MarkdownNote"]
    assert len(notes) == len(TEMPLATES)
    for text in (note["widgets_values"][0] for note in notes):
        assert "`" not in text and text.count("huggingface.co") == 2 * text.count("](https://huggingface.co"), text


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
