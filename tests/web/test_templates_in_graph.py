"""Templates and blueprints opened in the editor, in both renderers: nothing is missing, and they would run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from frontend import Frontend
from graphs import BLUEPRINTS, TEMPLATES, read, without_titles
from playwright.sync_api import ConsoleMessage

from demo_host import load_workflow
from host import ROOT
from workflow import ui_to_api

PICTURES = ROOT / "out" / "web"
UNKNOWN = """
() => {
    const graphs = [window.app.rootGraph, ...window.app.rootGraph.subgraphs.values()];
    const types = graphs.flatMap((graph) => graph.nodes).map((node) => node.type);
    return types.filter((type) => !(type in window.LiteGraph.registered_node_types));
}
"""
# Nodes that stick out of the group they begin in, or lie on another node; sizes as the editor needs them.
MISPLACED = """
() => {
    const { nodes, groups } = window.app.graph;
    const title = window.LiteGraph.NODE_TITLE_HEIGHT;
    const box = (node) => {
        const minimum = node.computeSize();
        const [width, height] = [0, 1].map((axis) => Math.max(node.size[axis], minimum[axis]));
        const [left, top] = [node.pos[0], node.pos[1] - title];
        return { name: `${node.type} ${node.id}`, left, top, right: left + width, bottom: top + height + title };
    };
    const boxes = nodes.map(box);
    const found = [];
    for (const group of groups) {
        const [left, top] = group.pos;
        const [right, bottom] = [left + group.size[0], top + group.size[1]];
        for (const each of boxes) {
            const begins = each.left >= left && each.left < right && each.top >= top && each.top < bottom;
            if (begins && (each.right > right || each.bottom > bottom)) {
                found.push(`${each.name} ${each.right - right} ${each.bottom - bottom} out of ${group.title}`);
            }
        }
    }
    boxes.forEach((a, number) => boxes.slice(number + 1).forEach((b) => {
        if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom) {
            found.push(`${a.name} on ${b.name}`);
        }
    }));
    return found;
}
"""


@pytest.fixture
def complaints(frontend: Frontend) -> Iterator[list[str]]:
    """What the page writes to its console as an error, but for downloads that the host does not let it look up."""
    found: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        if message.type == "error" and "Content Security Policy" not in message.text:
            found.append(message.text)

    frontend.page.on("console", listen)
    yield found
    frontend.page.remove_listener("console", listen)


def test_templates_open(frontend: Frontend, complaints: list[str]) -> None:
    for name, path in TEMPLATES.items():
        frontend.open(read(path))
        assert frontend.evaluate(UNKNOWN) == [], name
        assert without_titles(frontend.prompt()) == without_titles(load_workflow(name)), name
        assert complaints == [], name
        assert frontend.evaluate(MISPLACED) == [], name


def test_blueprints_open(frontend: Frontend, complaints: list[str]) -> None:
    """Both sides of each; the converter makes of it what the editor makes."""
    info = frontend.host.object_info()
    for name, path in BLUEPRINTS.items():
        blueprint = read(path)
        frontend.open(blueprint)
        assert frontend.evaluate(UNKNOWN) == [], name
        assert without_titles(frontend.prompt()) == ui_to_api(blueprint, info), name
        frontend.evaluate("() => window.app.canvas.setGraph(window.app.rootGraph.nodes[0].subgraph)")
        frontend.page.wait_for_timeout(200)
        frontend.evaluate("() => window.app.canvas.setGraph(window.app.rootGraph)")
        assert complaints == [], name


def test_value_set_on_the_outside_of_a_blueprint(frontend: Frontend) -> None:
    blueprint = read(BLUEPRINTS["Follow a Picture (RefDrop)"])
    frontend.open(blueprint)
    (node,) = blueprint["nodes"]
    frontend.set_widget(node["id"], "strength", -0.2)
    saved = frontend.graph()
    api = ui_to_api(saved, frontend.host.object_info())
    assert api == without_titles(frontend.prompt())
    assert api[f"{node['id']}:4"]["inputs"]["strength"] == -0.2


@pytest.mark.parametrize(
    ("name", "missing"), [("refdrop_wan", 3), ("leffa_without_packs", 1)], ids=["refdrop_wan", "leffa_without_packs"]
)
def test_missing_models_are_offered_for_download(frontend: Frontend, name: str, missing: int) -> None:
    """The demo's host has no file of the first template, and all but SAM3 of the second."""
    template = read(TEMPLATES[name])
    frontend.open(template)
    frontend.page.get_by_role("button", name="View details").click()
    named = {model["name"] for node in template["nodes"] for model in node["properties"].get("models", ())}
    models = named - {path.name for path in (frontend.host.base / "models").rglob("*")}
    assert len(models) == missing
    for model in models:
        frontend.page.get_by_role("button", name=f"Download {model}").wait_for()
    for model in named - models:
        assert frontend.page.get_by_role("button", name=f"Download {model}").count() == 0
    frontend.screenshot(PICTURES / f"missing_models_{name}_{frontend.renderer}.png")
    frontend.page.get_by_role("button", name="Toggle properties panel").first.click()
    frontend.page.get_by_role("button", name="Download all").wait_for(state="hidden")


@pytest.mark.parametrize(
    ("name", "packs"),
    [
        ("leffa_from_photograph", ["comfyui_controlnet_aux", "human-parser-comfyui-node"]),
        ("leffa_without_packs", ["refattention"]),
    ],
    ids=["leffa_from_photograph", "leffa_without_packs"],
)
def test_missing_packs_are_named(frontend: Frontend, name: str, packs: list[str]) -> None:
    """As where these packs are not installed: the page does not know their nodes."""
    template = read(TEMPLATES[name])
    kinds = {node["type"] for node in template["nodes"] if node["properties"].get("cnr_id") in packs}
    frontend.evaluate("(kinds) => kinds.forEach((kind) => window.LiteGraph.unregisterNodeType(kind))", sorted(kinds))
    try:
        frontend.open(template)
        frontend.page.get_by_role("button", name="View details").click()
        for pack in packs:
            frontend.page.get_by_text(pack, exact=True).first.wait_for()
        frontend.screenshot(PICTURES / f"missing_packs_{name}_{frontend.renderer}.png")
        assert sorted(set(frontend.evaluate(UNKNOWN))) == sorted(kinds)
    finally:
        frontend.load()
        frontend.new_graph()
        frontend.errors.clear()
