"""The templates that start from a photograph, on a real server; other packs' nodes are the demo's stand-ins."""

from __future__ import annotations

from typing import Any

import pytest
from pixels import painted

from demo_host import load_workflow, set_inputs
from host import HeadlessHost, WorkflowError

pytestmark = pytest.mark.e2e
Workflow = dict[str, Any]


def small(name: str) -> Workflow:
    """A template at 96 x 128 pixels and two steps."""
    workflow = set_inputs(load_workflow(name), "LeffaFit", width=96, height=128)
    return set_inputs(workflow, "LeffaSigmas", steps=2)


def test_with_nodes_of_other_packs(host: HeadlessHost) -> None:
    """Their DensePose in its default colours, parsing without a word on its labels, points of DWPose."""
    picture = painted(host, small("leffa_from_photograph"))
    assert picture.shape == (128, 96, 3) and picture.std() > 5


@pytest.mark.parametrize(("body_map", "rule"), [("Parula", "viton_hd"), ("part numbers", "dress_code")])
def test_as_published(host: HeadlessHost, body_map: str, rule: str) -> None:
    """The official mask and edge with the kind of map of either file, and nothing else to change."""
    workflow = small("leffa_from_photograph")
    other = set_inputs(workflow, "LeffaLoader", body_map=body_map)
    official = set_inputs(set_inputs(other, "LeffaMask", rule=rule), "LeffaRepaint", edge="official")
    pictures = [painted(host, each) for each in (workflow, other, official)]
    assert (pictures[0] != pictures[1]).any() == (body_map != "Parula")
    assert (pictures[1] != pictures[2]).any()


def test_without_the_map_between(host: HeadlessHost) -> None:
    """What happened in silence before: Viridis into a model that was trained with Parula."""
    workflow = small("leffa_from_photograph")
    (name,) = (name for name, node in workflow.items() if node["class_type"] == "DensePosePreprocessor")
    workflow[name]["inputs"]["resolution"] = 64
    direct = {
        key: {**node, "inputs": {**node["inputs"], "densepose": [name, 0]}}
        if node["class_type"] == "LeffaTryOn"
        else node
        for key, node in workflow.items()
    }
    with pytest.raises(WorkflowError, match=r"\(LeffaTryOn\): densepose is .* pixels, but .* Leffa Body Map between"):
        painted(host, direct)
    size = {"width": 96, "height": 128, "crop": "disabled", "upscale_method": "nearest-exact"}
    scaled = {"class_type": "ImageScale", "inputs": {"image": [name, 0], **size}}
    for node in direct.values():
        if node["class_type"] == "LeffaTryOn":
            node["inputs"]["densepose"] = ["scaled", 0]
    with pytest.raises(WorkflowError, match="kind Viridis, but virtual_tryon was trained with Parula"):
        painted(host, {**direct, "scaled": scaled})


def test_without_other_packs(host: HeadlessHost) -> None:
    """The demo has no SAM3: a mask takes its place."""
    workflow = small("leffa_without_packs")
    unused = {"CheckpointLoaderSimple", "CLIPTextEncode", "SAM3_Detect"}
    (found,) = (name for name, node in workflow.items() if node["class_type"] == "SAM3_Detect")
    workflow = {name: node for name, node in workflow.items() if node["class_type"] not in unused}
    workflow[found] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 48, "height": 64}}
    with pytest.raises(WorkflowError, match=r"\(LeffaDensePose\): .* switch run_code_of_file on"):
        painted(host, workflow)
    picture = painted(host, set_inputs(workflow, "LeffaDensePose", run_code_of_file=True))
    assert picture.shape == (128, 96, 3) and picture.std() > 5


def test_two_styles_are_mixed(host: HeadlessHost) -> None:
    workflow = set_inputs(load_workflow("deadiff_two_styles"), "EmptyLatentImage", width=64, height=64)
    workflow = set_inputs(workflow, "DEADiffEulerSampler", steps=3)
    mixed = painted(host, workflow)
    assert (painted(host, set_inputs(workflow, "DEADiffStyle", ratios="0.3, 0.7")) != mixed).any()
