"""The published repair workflow on a real server, from the picture files to the picture file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from pixels import pixels
from refine_adapter import write_refine_adapter

from demo_host import load_workflow, set_inputs
from host import HeadlessHost, WorkflowError

pytestmark = pytest.mark.e2e
Workflow = dict[str, Any]
FEATHER = 8


SMALL = {"working_size": 128, "steps": 2, "minimum_contrast": 0.0, "layers": "output.10, output.11"}


@pytest.fixture
def repair() -> Workflow:
    """The published workflow at a small working size, accepting any place."""
    return set_inputs(load_workflow("refine_by_align"), "RefineByAlign", **SMALL)


def run(host: HeadlessHost, workflow: Workflow) -> np.ndarray:
    outputs = host.run(workflow, timeout=240)["outputs"]
    (path,) = host.images({"outputs": {"7": outputs["7"]}})
    return pixels(path)


@pytest.fixture
def trained(host: HeadlessHost) -> Workflow:
    """The published workflow for an adapter, and an untrained one for the demo models under its name."""
    workflow = load_workflow("refine_trained")
    (name,) = [n["inputs"]["adapter_name"] for n in workflow.values() if n["class_type"] == "RefineAlignLoad"]
    write_refine_adapter(host.base / "models" / "model_patches" / name)
    return set_inputs(workflow, "RefineByAlign", **SMALL)


def test_with_an_adapter_too(host: HeadlessHost, repair: Workflow, trained: Workflow) -> None:
    painted = run(host, trained)
    check_only_the_artifact_changed(host, painted)
    assert (painted != run(host, set_inputs(repair, "RefineByAlign", strength=1.0))).any()


def test_only_the_artifact_is_painted_anew(host: HeadlessHost, repair: Workflow) -> None:
    check_only_the_artifact_changed(host, run(host, repair))


def check_only_the_artifact_changed(host: HeadlessHost, painted: np.ndarray) -> None:
    with Image.open(host.base / "input" / "refattention_garbled_cup.png") as file:
        before = np.asarray(file).astype(int)
    rows, columns = np.nonzero(before[..., 3] == 0)
    changed = (painted != before[..., :3]).any(-1)
    assert changed[before[..., 3] == 0].mean() > 0.9
    changed[rows.min() - FEATHER : rows.max() + 1 + FEATHER, columns.min() - FEATHER : columns.max() + 1 + FEATHER] = 0
    assert not changed.any()


def test_no_match_is_a_warning_and_not_an_error(host: HeadlessHost, repair: Workflow) -> None:
    before = pixels(host.base / "input" / "refattention_garbled_cup.png")
    assert np.array_equal(run(host, set_inputs(repair, "RefineByAlign", minimum_contrast=100.0)), before)
    assert "The reference shows no match for 1 of 1 areas" in host.log()


def test_wrong_input_is_answered_with_node_and_reason(host: HeadlessHost, repair: Workflow) -> None:
    with pytest.raises(WorkflowError, match=r"\(RefineByAlign\): layers names 'output.99'"):
        run(host, set_inputs(repair, "RefineByAlign", layers="output.99"))
