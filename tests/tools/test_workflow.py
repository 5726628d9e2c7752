"""UI format to API format, against small object_info tables."""

from __future__ import annotations

import json
from typing import Any

import pytest

from workflow import WorkflowFormatError, ui_to_api

INFO: dict[str, Any] = {
    "Source": {
        "input": {"required": {"name": [["a", "b"], {"image_upload": True}]}},
        "input_order": {"required": ["name"]},
    },
    "Sampler": {
        "input": {
            "required": {
                "image": ["IMAGE"],
                "seed": ["INT", {"control_after_generate": True}],
                "cfg": ["FLOAT", {}],
            },
            "optional": {"text": ["STRING", {"forceInput": True}], "on": ["BOOLEAN", {}]},
        },
        "input_order": {"required": ["image", "seed", "cfg"], "optional": ["text", "on"]},
    },
    "Filter": {
        "input": {"required": {"mask": ["MASK"], "image": ["IMAGE"]}},
        "input_order": {"required": ["mask", "image"]},
    },
}


def source(node_id: int = 1) -> dict[str, Any]:
    return {"id": node_id, "type": "Source", "widgets_values": ["a", "image"]}


def sampler(link: int | None, **more: Any) -> dict[str, Any]:
    node = {"id": 9, "type": "Sampler", "inputs": [{"name": "image", "type": "IMAGE", "link": link}]}
    return {**node, "widgets_values": [5, "randomize", 7.5, True], **more}


def graph(nodes: list[dict[str, Any]], *links: tuple[int, int, int, int, int, str]) -> dict[str, Any]:
    return {"nodes": nodes, "links": [list(link) for link in links], "version": 0.4}


def test_widgets_are_positional_and_the_seed_control_is_left_out() -> None:
    api = ui_to_api(graph([source(), sampler(1)], (1, 1, 0, 9, 0, "IMAGE")), INFO)
    assert api["1"] == {"class_type": "Source", "inputs": {"name": "a"}}
    assert api["9"]["inputs"] == {"seed": 5, "cfg": 7.5, "on": True, "image": ["1", 0]}


def test_file_from_before_the_seed_control_existed() -> None:
    api = ui_to_api(graph([sampler(None, widgets_values=[5, 7.5, True])]), INFO)
    assert api["9"]["inputs"] == {"seed": 5, "cfg": 7.5, "on": True}


def test_file_from_before_a_widget_existed_gets_its_default() -> None:
    newer = json.loads(json.dumps(INFO))
    newer["Sampler"]["input"]["optional"]["later"] = ["FLOAT", {"default": 0.5}]
    newer["Sampler"]["input_order"]["optional"].append("later")
    assert ui_to_api(graph([sampler(None)]), newer)["9"]["inputs"] == {"seed": 5, "cfg": 7.5, "on": True, "later": 0.5}


def test_link_into_a_widget_replaces_its_value_but_keeps_the_positions() -> None:
    converted = sampler(None, inputs=[{"name": "seed", "type": "INT", "link": 1, "widget": {"name": "seed"}}])
    api = ui_to_api(graph([source(), converted], (1, 1, 0, 9, 0, "INT")), INFO)
    assert api["9"]["inputs"] == {"seed": ["1", 0], "cfg": 7.5, "on": True}


def test_named_widget_values() -> None:
    api = ui_to_api(graph([sampler(None, widgets_values={"seed": 1, "cfg": 2.0, "preview": "x"})]), INFO)
    assert api["9"]["inputs"] == {"seed": 1, "cfg": 2.0}


def test_notes_and_reroutes_vanish() -> None:
    reroute = {"id": 2, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": 1}]}
    note = {"id": 3, "type": "MarkdownNote", "widgets_values": ["hello"]}
    links = [(1, 1, 0, 2, 0, "*"), (2, 2, 0, 9, 0, "IMAGE")]
    api = ui_to_api(graph([source(), reroute, note, sampler(2)], *links), INFO)
    assert set(api) == {"1", "9"} and api["9"]["inputs"]["image"] == ["1", 0]


def test_bypassed_node_passes_the_input_of_the_same_type() -> None:
    inputs = [{"name": "mask", "type": "MASK", "link": None}, {"name": "image", "type": "IMAGE", "link": 1}]
    bypassed = {"id": 2, "type": "Filter", "mode": 4, "inputs": inputs}
    links = [(1, 1, 0, 2, 1, "IMAGE"), (2, 2, 0, 9, 0, "IMAGE")]
    api = ui_to_api(graph([source(), bypassed, sampler(2)], *links), INFO)
    assert set(api) == {"1", "9"} and api["9"]["inputs"]["image"] == ["1", 0]


def test_muted_node_leaves_its_targets_unconnected() -> None:
    muted = {**source(), "mode": 2}
    api = ui_to_api(graph([muted, sampler(1)], (1, 1, 0, 9, 0, "IMAGE")), INFO)
    assert set(api) == {"9"} and "image" not in api["9"]["inputs"]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        pytest.param({"1": {"class_type": "Source"}}, "no nodes and links", id="already-api-format"),
        pytest.param(graph([{"id": 4, "type": "Nope"}]), "Node 4: the host has no node 'Nope'", id="unknown"),
        pytest.param(graph([sampler(None, widgets_values=[5])]), "no value for cfg", id="too-few-widgets"),
        pytest.param(graph([sampler(7)]), "Link 7 is used but not listed", id="missing-link"),
        pytest.param(graph([sampler(1)], (1, 8, 0, 9, 0, "IMAGE")), "node 8, which does not", id="no-origin"),
    ],
)
def test_graph_that_does_not_fit_names_the_place(broken: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkflowFormatError, match=message):
        ui_to_api(broken, INFO)


def test_circle_of_reroutes_is_refused() -> None:
    reroute = {"id": 2, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": 1}]}
    with pytest.raises(WorkflowFormatError, match="circle"):
        ui_to_api(graph([reroute, sampler(1)], (1, 2, 0, 9, 0, "IMAGE")), INFO)
