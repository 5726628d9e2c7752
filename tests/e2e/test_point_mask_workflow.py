"""The published point mask workflow on a real server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pixels import pixels

from demo_host import load_workflow, set_inputs
from host import HeadlessHost, WorkflowError

pytestmark = pytest.mark.e2e
PLUS, MINUS = (80, 230), (830, 230)


def run(host: HeadlessHost, **values: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The pictures by the titles of their nodes, and the message that the editor gets."""
    workflow = set_inputs(load_workflow("point_mask"), "PointMask", **values)
    outputs = host.run(workflow, timeout=120)["outputs"]
    pictures = {
        workflow[name]["_meta"]["title"]: pixels(path)
        for name, output in outputs.items()
        for path in host.images({"outputs": {name: output}})
    }
    (message,) = (output["refattention_points"][0] for output in outputs.values() if "refattention_points" in output)
    for name in ("picture", "mask", "similarity"):
        file = message[name]
        pictures[name] = pixels(host.base / file["type"] / file["subfolder"] / file["filename"])
    return pictures, message


@pytest.fixture(scope="module")
def pictures(host: HeadlessHost) -> dict[str, np.ndarray]:
    return run(host)[0]


def test_mask_holds_one_of_the_two(pictures: dict[str, np.ndarray]) -> None:
    mask = pictures["Mask of the subject"][..., 0] / 255
    assert mask.shape == (360, 900)
    assert mask[PLUS[1], PLUS[0]] == 1 and mask[MINUS[1], MINUS[0]] == 0
    assert 0.1 < mask[:, :450].mean() < 0.6
    assert mask[:, 450:].mean() == 0


def test_cleaned_picture_loses_only_the_other(pictures: dict[str, np.ndarray]) -> None:
    change = np.abs(pictures["The look-alike removed"] - pictures["picture"]).max(-1)
    assert change[:, :400].max() <= 1
    assert change[MINUS[1], MINUS[0]] > 20
    assert 0.05 < (change > 20).mean() < 0.4


def test_heat_map_is_brightest_at_the_subject(pictures: dict[str, np.ndarray]) -> None:
    brightness = pictures["Similarity"].sum(-1)
    assert brightness[PLUS[1], PLUS[0]] > 2 * brightness[:, 450:].max() / 1.5
    assert brightness[MINUS[1], MINUS[0]] < 250


def test_editor_gets_what_the_outputs_hold(host: HeadlessHost) -> None:
    pictures, message = run(host, threshold=0.4)
    assert (message["width"], message["height"], message["note"]) == (900, 360, "")
    assert np.abs(pictures["mask"] - pictures["Mask of the subject"]).max() <= 1
    assert np.abs(pictures["similarity"] - pictures["Similarity"]).max() <= 1


def test_without_encoder_on_another_photograph(host: HeadlessHost) -> None:
    workflow = set_inputs(load_workflow("point_mask"), "LoadImage", image="refattention_coins.jpg")
    workflow = set_inputs(workflow, "PointMask", positive_coords='[{"x": 330, "y": 42}]', negative_coords="[]")
    for node in workflow.values():
        node["inputs"].pop("clip_vision", None)
    entry = host.run(workflow)
    (note,) = [output["refattention_points"][0]["note"] for output in entry["outputs"].values() if
               "refattention_points" in output]  # fmt: skip
    assert note.startswith("No clip_vision is connected")


def test_points_linked_from_another_node(host: HeadlessHost) -> None:
    """Linked text is checked when it arrives, not before."""
    workflow = load_workflow("point_mask")
    workflow["20"] = {"class_type": "PrimitiveString", "inputs": {"value": '[{"x": 80, "y": 230}]'}}
    linked = set_inputs(workflow, "PointMask", positive_coords=["20", 0], grow=1)
    entry = host.run(linked)
    assert any("refattention_points" in output for output in entry["outputs"].values())
    with pytest.raises(WorkflowError, match=r"\(PointMask\): .*positive_coords has points outside"):
        host.run(set_inputs(linked, "PrimitiveString", value='[{"x": 80, "y": 2300}]'))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"positive_coords": "[]"}, r"\(PointMask\): .*positive_coords holds no point", id="none"),
        pytest.param({"positive_coords": "[{"}, r"\(PointMask\): .*positive_coords is not valid JSON", id="json"),
        pytest.param(
            {"positive_coords": '[{"x": 900, "y": 5}]'}, r"\(PointMask\): .*900 x 360 pixels: \(900, 5\)", id="outside"
        ),
        pytest.param({"layer": 40}, r"\(PointMask\): .*layer is 40, but this encoder has 24 layers", id="layer"),
        pytest.param({"threshold": 1.5}, r"\(PointMask\): Value 1.5 bigger than max", id="range"),
    ],
)
def test_bad_input_is_answered_with_node_and_reason(host: HeadlessHost, values: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkflowError, match=message):
        run(host, **values)
