"""Subgraphs in the UI format: what is inside them gets ids such as 5:3, values and links come from their outside."""

from __future__ import annotations

from typing import Any

import pytest

from workflow import WorkflowFormatError, ui_to_api

INFO: dict[str, Any] = {
    "Source": {"input": {"required": {"name": [["a", "b"]]}}, "input_order": {"required": ["name"]}},
    "Blend": {
        "input": {"required": {"image": ["IMAGE"], "amount": ["FLOAT", {}], "mode": [["x", "y"], {}]}},
        "input_order": {"required": ["image", "amount", "mode"]},
    },
    "Show": {"input": {"required": {"image": ["IMAGE"]}}, "input_order": {"required": ["image"]}},
}


def source(name: str = "a") -> dict[str, Any]:
    return {"id": 1, "type": "Source", "widgets_values": [name]}


def show(link: int) -> dict[str, Any]:
    return {"id": 9, "type": "Show", "inputs": [{"name": "image", "type": "IMAGE", "link": link}]}


def slot(name: str, kind: str, link: int | None, widget: bool = False) -> dict[str, Any]:
    return {"name": name, "type": kind, "link": link, **({"widget": {"name": name}} if widget else {})}


def link(number: int, origin: int, out: int, target: int, into: int, kind: str) -> dict[str, Any]:
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return dict(zip(keys, (number, origin, out, target, into, kind), strict=True))


def blend(**more: Any) -> dict[str, Any]:
    """Blend with everything from the subgraph's inputs but the mode."""
    inputs = [slot("image", "IMAGE", 1), slot("amount", "FLOAT", 2, widget=True)]
    return {"id": 3, "type": "Blend", "inputs": inputs, "widgets_values": [0.5, "x"], **more}


def definition(node: dict[str, Any] | None = None, name: str = "sub") -> dict[str, Any]:
    return {
        "id": name,
        "inputs": [{"name": "picture"}, {"name": "strength"}],
        "outputs": [{"name": "image"}],
        "nodes": [node or blend()],
        "links": [link(1, -10, 0, 3, 0, "IMAGE"), link(2, -10, 1, 3, 1, "FLOAT"), link(3, 3, 0, -20, 0, "IMAGE")],
    }


def outside(kind: str = "sub", **more: Any) -> dict[str, Any]:
    inputs = [slot("picture", "IMAGE", 1), slot("strength", "FLOAT", None, widget=True)]
    return {"id": 5, "type": kind, "inputs": inputs, "outputs": [{"type": "IMAGE"}], "widgets_values": [0.8], **more}


def graph(node: dict[str, Any], *definitions: dict[str, Any]) -> dict[str, Any]:
    return {
        "nodes": [source(), node, show(2)],
        "links": [[1, 1, 0, 5, 0, "IMAGE"], [2, 5, 0, 9, 0, "IMAGE"]],
        "definitions": {"subgraphs": definitions or [definition()]},
    }


def test_inside_is_put_into_the_outer_graph() -> None:
    api = ui_to_api(graph(outside()), INFO)
    assert set(api) == {"1", "5:3", "9"}
    assert api["5:3"]["inputs"] == {"image": ["1", 0], "amount": 0.8, "mode": "x"}
    assert api["9"]["inputs"] == {"image": ["5:3", 0]}


@pytest.mark.parametrize("values", [[], None, [None]])
def test_value_that_is_not_set_outside_is_that_of_the_node_inside(values: list[Any] | None) -> None:
    assert ui_to_api(graph(outside(widgets_values=values)), INFO)["5:3"]["inputs"]["amount"] == 0.5


def test_link_from_outside_replaces_the_value() -> None:
    node = outside(inputs=[slot("picture", "IMAGE", None), slot("strength", "FLOAT", 1, widget=True)])
    assert ui_to_api(graph(node), INFO)["5:3"]["inputs"] == {"amount": ["1", 0], "mode": "x"}


def test_two_nodes_of_one_subgraph_have_values_of_their_own() -> None:
    both = graph(outside())
    both["nodes"].append({**outside(widgets_values=[0.1]), "id": 6})
    api = ui_to_api(both, INFO)
    assert (api["5:3"]["inputs"]["amount"], api["6:3"]["inputs"]["amount"]) == (0.8, 0.1)


def test_widgets_as_older_editors_list_them() -> None:
    listed = {"proxyWidgets": [["3", "mode"], ["-1", "strength"], ["3", "$$preview"], ["3", "control_after_generate"]]}
    node = outside(properties=listed, widgets_values=["y", 0.9, None, "fixed"])
    assert ui_to_api(graph(node), INFO)["5:3"]["inputs"] == {"image": ["1", 0], "amount": 0.9, "mode": "y"}


def test_subgraph_in_a_subgraph() -> None:
    inner = {**outside("inner", widgets_values=[0.3]), "id": 3}
    inner["inputs"] = [slot("picture", "IMAGE", 1), slot("strength", "FLOAT", 2, widget=True)]
    api = ui_to_api(graph(outside(), definition(inner), definition(name="inner")), INFO)
    # Its node 3 has the number of a node in the other subgraph; the editor gives it the next one.
    assert api["5:3:10"]["inputs"] == {"image": ["1", 0], "amount": 0.8, "mode": "x"}
    assert api["9"]["inputs"] == {"image": ["5:3:10", 0]}


def test_bypassed_and_muted_subgraphs() -> None:
    bypassed, muted = (ui_to_api(graph(outside(mode=mode)), INFO) for mode in (4, 2))
    assert set(bypassed) == set(muted) == {"1", "9"}
    assert bypassed["9"]["inputs"] == {"image": ["1", 0]} and muted["9"]["inputs"] == {}


def test_bypassed_node_inside_passes_the_picture_on() -> None:
    api = ui_to_api(graph(outside(), definition(blend(mode=4))), INFO)
    assert set(api) == {"1", "9"} and api["9"]["inputs"] == {"image": ["1", 0]}


def test_subgraph_in_itself_is_refused() -> None:
    with pytest.raises(WorkflowFormatError, match="Node 5:3: the host has no node 'sub'"):
        ui_to_api(graph(outside(), definition({**outside(), "id": 3})), INFO)


def test_graph_is_not_changed() -> None:
    before, after = graph(outside()), graph(outside())
    ui_to_api(after, INFO)
    assert after == before


def with_another_target(node: dict[str, Any]) -> dict[str, Any]:
    """The subgraph's strength feeds a second node, whose input is no widget."""
    inside = definition()
    inside["nodes"].append({"id": 4, "type": "Show", "inputs": [slot("image", "FLOAT", 4)]})
    inside["links"].append(link(4, -10, 1, 4, 0, "FLOAT"))
    return graph(node, inside)


def test_value_of_an_input_reaches_all_that_it_feeds() -> None:
    assert ui_to_api(with_another_target(outside()), INFO)["5:4"]["inputs"] == {"image": 0.8}
    assert ui_to_api(with_another_target(outside(widgets_values=[])), INFO)["5:4"]["inputs"] == {"image": 0.5}


def test_values_are_in_the_order_of_the_subgraph_not_of_its_node() -> None:
    """A node may list fewer inputs than it has values, and in another order."""
    inside = definition()
    inside["inputs"].append({"name": "mode"})
    inside["nodes"][0]["inputs"].append(slot("mode", "COMBO", 4, widget=True))
    inside["links"].append(link(4, -10, 2, 3, 2, "COMBO"))
    node = outside(widgets_values=[0.9, "y"], inputs=[slot("picture", "IMAGE", 1), slot("mode", "COMBO", None, True)])
    assert ui_to_api(graph(node, inside), INFO)["5:3"]["inputs"] == {"image": ["1", 0], "amount": 0.9, "mode": "y"}


def test_output_of_a_subgraph_in_a_subgraph_is_not_taken_for_that_of_the_outer_one() -> None:
    inner = {
        **outside("inner"),
        "id": 7,
        "inputs": [slot("picture", "IMAGE", 1), slot("strength", "FLOAT", None, True)],
    }
    outer = definition(blend())
    outer["nodes"].append(inner)
    outer["links"].append(link(5, -10, 0, 7, 0, "IMAGE"))
    api = ui_to_api(graph(outside(), outer, definition(name="inner")), INFO)
    assert api["9"]["inputs"] == {"image": ["5:3", 0]}
