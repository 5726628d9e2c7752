"""What of a workflow a host would refuse, by what it says of its node classes."""

from __future__ import annotations

from typing import Any

import pytest
from node_specs import faults, some_of

TWO = {"key": "two", "inputs": {"required": {"width": ["INT", {"min": 1}]}}}
INPUTS: dict[str, list[Any]] = {
    "seed": ["INT", {"min": 0, "max": 2**64 - 1}],
    "strength": ["FLOAT", {"min": 0.0, "max": 1.0}],
    "on": ["BOOLEAN", {}],
    "text": ["STRING", {}],
    "old": [["euler", "heun"], {}],
    "new": ["COMBO", {"options": [1, 2]}],
    "many": ["COMBO", {"options": ["a", "b"], "multiselect": True}],
    "remote": ["COMBO", {"options": ["a"], "remote": {"route": "/x"}}],
    "filled": ["COMBO", {"options": []}],
    "file": [["x.png"], {"image_upload": True}],
    "resize": ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "one", "inputs": {}}, TWO]}],
    "grown": ["COMFY_AUTOGROW_V3", {}],
    "model": ["MODEL", {}],
}
INFO: dict[str, Any] = {
    "All": {"input": {"required": INPUTS}, "output_node": True},
    "Model": {"input": {"required": {"name": [["m"], {}]}, "optional": {"more": ["INT"]}}},
}
FINE: dict[str, Any] = {
    **{"seed": 1, "strength": 1, "on": False, "text": 5, "old": "euler", "new": 2, "many": {"__value__": ["b"]}},
    **{"remote": "z", "filled": "z", "file": "x.png", "resize": "two", "resize.width": 3, "grown.a": ["2", 0]},
    "model": ["2", 0],
}


def found(**inputs: Any) -> dict[str, str]:
    prompt = {
        "1": {"class_type": "All", "inputs": {**FINE, **inputs}},
        "2": {"class_type": "Model", "inputs": {"name": "m"}},
        "3": {"class_type": "Model", "inputs": {"name": "leads to no output"}},
    }
    return {fault.name: fault.text for fault in faults(prompt, INFO)}


def test_workflow_that_fits() -> None:
    assert found() == {}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("seed", -1, "-1 is less than 0"),
        ("seed", 10**23, f"{10**23} is more than {2**64 - 1}"),
        ("seed", "many", "'many' is not a whole number"),
        ("seed", None, "None is not a whole number"),
        ("seed", 1.5, "1.5 is not a whole number"),
        ("strength", float("nan"), "nan is not a number"),
        ("strength", 5, "5 is more than 1.0"),
        ("on", "false", "'false' is neither true nor false"),
        ("old", "eulr", "'eulr' is not one of euler, heun"),
        ("new", "2", "'2' is not one of 2, 1"),
        ("many", {"__value__": ["b", "c"]}, "'c' is not one of a, b"),
        ("filled", "sd15.safetensors", "the host has no 'sd15.safetensors', nor any other"),
        ("file", "wolf.png", "'wolf.png' is not one of x.png"),
        ("resize", "three", "'three' is not one of one, two"),
        ("resize.width", 0, "0 is less than 1"),
        ("model", ["9", 0], "['9', 0] is no output of a node of the workflow"),
        ("model", ["1"], "['1'] is no output of a node of the workflow"),
    ],
)
def test_value_that_does_not_fit(name: str, value: Any, text: str) -> None:
    assert found(**{name: value}) == {name: text}


def test_nodes_that_do_not_fit() -> None:
    missing = {name: value for name, value in FINE.items() if name not in ("seed", "resize.width")}
    prompt = {"1": {"class_type": "All", "inputs": missing}, "2": {"class_type": "Model", "inputs": {"name": "q"}}}
    assert [(fault.node, fault.name) for fault in faults(prompt, INFO)] == [
        ("1", "seed"),
        ("1", "resize.width"),
        ("2", "name"),
    ]
    (fault,) = faults({"2": prompt["2"]}, INFO)
    assert fault.text == "no node of the workflow saves or shows anything"
    prompt["3"] = {"class_type": "Other", "inputs": {}}
    assert [(fault.node, fault.text) for fault in faults(prompt, INFO)] == [
        ("3", "the host has no node 'Other'; install its pack")
    ]


def test_only_a_file_may_be_in_a_folder_below() -> None:
    prompt = {"1": {"class_type": "All", "inputs": {**FINE, "file": "a/b.png", "old": "a/b.png", "model": "m"}}}
    assert {fault.name: fault.file for fault in faults(prompt, INFO)} == {"file": "a/b.png", "old": ""}


def test_nearest_name_comes_first_and_many_are_counted() -> None:
    assert some_of(map(str, range(100)), "77") == "77, 0, 1, 2, 3, 4, … (100 in all)"
