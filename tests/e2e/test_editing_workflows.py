"""The published repairs by editing models on a real server, with tiny models of the same classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pixels import pixels

from demo_host import demo_host, load_workflow
from host import ROOT, HeadlessHost, WorkflowError

pytestmark = pytest.mark.e2e
Workflow = dict[str, Any]
FEATHER = 8
SMALL = {"working_size": 160, "steps": 2, "minimum_contrast": 0.0}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeadlessHost]:
    host = demo_host(tmp_path_factory.mktemp("host"))
    host.packs["TinyEditing"] = ROOT / "tests" / "support" / "tiny_pack"
    with host:
        yield host


def with_tiny_model(name: str, node: str, family: str, **values: Any) -> Workflow:
    """A published workflow whose node has other widgets, and a tiny model for what its loaders would have brought."""
    workflow = load_workflow(name)
    (inputs,) = [each["inputs"] for each in workflow.values() if each["class_type"] == node]
    inputs.update(values)
    for slot, given in enumerate(("model", "vae", "positive", "negative")):
        if given in inputs:
            inputs[given] = ["tiny", slot]
    workflow["tiny"] = {"class_type": "TinyEditing", "inputs": {"family": family}}
    needed = {key for key, each in workflow.items() if each["class_type"] in (node, "SaveImage", "PreviewImage")}
    while more := {link[0] for key in needed for link in links(workflow[key])} - needed:
        needed |= more
    return {key: workflow[key] for key in needed}


def links(node: dict[str, Any]) -> list[Any]:
    """What comes from other nodes; a list that is a widget's value would be none."""
    return [value for value in node["inputs"].values() if isinstance(value, list)]


def saved(host: HeadlessHost, workflow: Workflow) -> list[np.ndarray]:
    """The pictures that a workflow writes, in the order of its nodes."""
    outputs = host.run(workflow, timeout=240)["outputs"]
    paths: list[Path] = [
        path for key in sorted(outputs, key=int) for path in host.images({"outputs": {key: outputs[key]}})
    ]
    return [pixels(path) for path in paths]


@pytest.mark.parametrize(("name", "family"), [("refine_flux_kontext", "flux"), ("refine_qwen_image_edit", "qwen")])
def test_only_the_artifact_is_painted_anew_and_the_map_lies_over_the_reference(
    tiny: HeadlessHost, name: str, family: str
) -> None:
    painted, heat = saved(tiny, with_tiny_model(name, "RefineByAlign", family, **SMALL))
    with Image.open(tiny.base / "input" / "refattention_garbled_cup.png") as file:
        before = np.asarray(file).astype(int)
    with Image.open(tiny.base / "input" / "refattention_two_cups.jpg") as file:
        assert heat.shape[:2] == (file.height, file.width)
    rows, columns = np.nonzero(before[..., 3] == 0)
    changed = (painted != before[..., :3]).any(-1)
    assert changed[rows, columns].mean() > 0.9
    changed[rows.min() - FEATHER : rows.max() + 1 + FEATHER, columns.min() - FEATHER : columns.max() + 1 + FEATHER] = 0
    assert not changed.any()


def test_the_reference_is_seen(tiny: HeadlessHost) -> None:
    with_it, without = (
        saved(tiny, with_tiny_model("refine_flux_kontext", "RefineByAlign", "flux", **SMALL, strength=strength))[0]
        for strength in (1.0, 0.0)
    )
    assert (with_it != without).any()


def test_a_model_that_is_none_is_answered_with_node_and_reason(tiny: HeadlessHost) -> None:
    with pytest.raises(WorkflowError, match=r"\(RefineByAlign\): Refine by Align: in-context needs an editing model"):
        tiny.run(with_tiny_model("refine_flux_kontext", "RefineByAlign", "sd3", **SMALL), timeout=240)


def test_the_probe_looks_in_context(tiny: HeadlessHost) -> None:
    look = {"working_size": 128, "layers": ""}
    in_context, by_itself = (
        saved(tiny, with_tiny_model("attention_probe", "AttentionProbe", "flux", **look, back_end=each))[-1]
        for each in ("in-context", "self-attention")
    )
    assert (in_context != by_itself).any()
