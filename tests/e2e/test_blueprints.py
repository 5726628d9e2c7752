"""Every subgraph blueprint: offered by the host, converted to API format, and run by the host."""

from __future__ import annotations

import pytest
from graphs import BLUEPRINTS, read, with_surroundings
from mixed import write_small_pictures

from host import PACK_NAME, HeadlessHost
from workflow import ui_to_api

pytestmark = pytest.mark.e2e


def test_host_offers_them(host: HeadlessHost) -> None:
    offered = {
        entry["name"]: key
        for key, entry in host.get("/global_subgraphs").items()
        if entry["info"]["node_pack"] == f"custom_nodes.{PACK_NAME}"
    }
    assert offered.keys() == BLUEPRINTS.keys() and len(offered) == 6
    for name, key in offered.items():
        assert host.get(f"/global_subgraphs/{key}")["data"] == BLUEPRINTS[name].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_file_is_what_the_editor_wants(name: str) -> None:
    """One node of one subgraph, both with the file's name; both borders of the subgraph know their links."""
    blueprint = read(BLUEPRINTS[name])
    (node,), (subgraph,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert (node["type"], node["title"], subgraph["name"]) == (subgraph["id"], name, name)
    assert len(subgraph["description"]) > 50 and len(blueprint["extra"]["BlueprintSearchAliases"]) > 3
    # The editor takes the node's title from the file's name; the points are placed inside.
    assert name.endswith("open to click)") == any(each["type"] == "PointMask" for each in subgraph["nodes"])
    links = {link["id"]: link for link in subgraph["links"]}
    for side, end in (("inputs", "origin"), ("outputs", "target")):
        assert [slot["name"] for slot in node[side]] == [slot["name"] for slot in subgraph[side]]
        for index, slot in enumerate(subgraph[side]):
            assert slot["linkIds"], slot["name"]
            border = {"origin": -10, "target": -20}[end], index
            assert {(links[i][f"{end}_id"], links[i][f"{end}_slot"]) for i in slot["linkIds"]} == {border}
    inside = {node["id"]: node for node in subgraph["nodes"]}
    for link in links.values():
        if link["target_id"] in inside:
            assert inside[link["target_id"]]["inputs"][link["target_slot"]]["link"] == link["id"]
        if link["origin_id"] in inside:
            assert link["id"] in inside[link["origin_id"]]["outputs"][link["origin_slot"]]["links"]


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_it_runs(host: HeadlessHost, name: str) -> None:
    write_small_pictures(host.base / "input")
    blueprint = read(BLUEPRINTS[name])
    outputs = len(blueprint["nodes"][0]["outputs"])
    prompt = ui_to_api(with_surroundings(blueprint), host.object_info())
    assert len([key for key in prompt if ":" in key]) == len(blueprint["definitions"]["subgraphs"][0]["nodes"])
    shown = host.run(prompt, timeout=120)["outputs"]
    assert {int(key) for key in shown if ":" not in key} == set(range(300, 300 + outputs))
