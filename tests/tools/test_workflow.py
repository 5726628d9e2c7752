"""UI format to API format, against small object_info tables."""

from __future__ import annotations

import json
from typing import Any

import pytest
from batch.overrides import Workflow
from batch.table import TableError

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


RESIZE: dict[str, Any] = {
    "Resize": {
        "input": {
            "required": {
                "image": ["IMAGE"],
                "resize_type": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "pixels", "inputs": {"required": {"width": ["INT", {"default": 512}]}}},
                            {"key": "factor", "inputs": {"required": {"by": ["FLOAT", {"default": 2.0}]}}},
                        ]
                    },
                ],
                "method": [["area", "lanczos"]],
            }
        },
        "input_order": {"required": ["image", "resize_type", "method"]},
    }
}


def resize(*values: Any) -> dict[str, Any]:
    return ui_to_api(graph([{"id": 2, "type": "Resize", "widgets_values": list(values)}]), RESIZE)


def test_dynamic_combo_brings_its_inputs() -> None:
    assert resize("pixels", 48, "area")["2"]["inputs"] == {
        **{"resize_type": "pixels", "resize_type.width": 48},
        "method": "area",
    }
    assert resize("factor", 0.5, "lanczos")["2"]["inputs"]["resize_type.by"] == 0.5
    assert resize()["2"]["inputs"] == {"resize_type": "pixels", "resize_type.width": 512, "method": "area"}


def test_columns_of_a_dynamic_combo() -> None:
    workflow = Workflow(resize("pixels", 48, "area"), RESIZE)
    assert workflow.apply({"2.resize_type.width": "64"})["2"]["inputs"]["resize_type.width"] == 64
    changed = workflow.apply({"Resize.resize_type.by": "0.5", "2.resize_type": "factor"})["2"]["inputs"]
    assert changed == {"resize_type": "factor", "resize_type.by": 0.5, "method": "area"}
    assert workflow.apply({"2.resize_type": "factor"})["2"]["inputs"]["resize_type.by"] == 2.0
    for column, value, reason in (
        ("2.resize_type.by", "0.5", "resize_type is 'pixels', which has no such input"),
        ("2.resize_type.width", "4.5", "'4.5' is not a whole number"),
        ("2.resize_type", "size", "'size' is not one of pixels, factor"),
    ):
        with pytest.raises(TableError, match=reason):
            workflow.apply({column: value})


def test_primitive_sets_the_widget_it_is_connected_to() -> None:
    primitive = {"id": 4, "type": "PrimitiveNode", "widgets_values": [7, "fixed"]}
    node = sampler(None, inputs=[{"name": "seed", "type": "INT", "link": 1, "widget": {"name": "seed"}}])
    assert ui_to_api(graph([primitive, node], (1, 4, 0, 9, 0, "INT")), INFO)["9"]["inputs"]["seed"] == 7


def test_bypassed_node_of_any_type_passes_its_input_on() -> None:
    """An input of type * fits every output, as in the preview of a text."""
    inputs = [{"name": "source", "type": "*", "link": 1}]
    bypassed = {"id": 2, "type": "Show", "mode": 4, "inputs": inputs, "outputs": [{"type": "IMAGE"}]}
    links = [(1, 1, 0, 2, 0, "IMAGE"), (2, 2, 0, 9, 0, "IMAGE")]
    assert ui_to_api(graph([source(), bypassed, sampler(2)], *links), INFO)["9"]["inputs"]["image"] == ["1", 0]


@pytest.mark.parametrize(
    "damage", [{"nodes": [{}], "links": []}, {"nodes": 3, "links": []}, {"nodes": [], "links": [1]}]
)
def test_damaged_file_is_one_sentence(damage: dict[str, Any]) -> None:
    with pytest.raises(WorkflowFormatError, match="The file is damaged"):
        ui_to_api(damage, INFO)
