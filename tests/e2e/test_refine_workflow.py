"""The published repair workflow on a real server, from the picture files to the picture file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from demo_host import load_workflow, set_inputs
from host import HeadlessHost, WorkflowError

pytestmark = pytest.mark.e2e
Workflow = dict[str, Any]
FEATHER = 8


@pytest.fixture
def repair() -> Workflow:
    """The published workflow at a small working size, accepting any place."""
    small = {"working_size": 128, "steps": 2, "minimum_contrast": 0.0, "layers": "output.10, output.11"}
    return set_inputs(load_workflow("refine_by_align"), "RefineByAlign", **small)


def run(host: HeadlessHost, workflow: Workflow) -> np.ndarray:
    outputs = host.run(workflow, timeout=240)["outputs"]
    (path,) = host.images({"outputs": {"7": outputs["7"]}})
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_only_the_artifact_is_painted_anew(host: HeadlessHost, repair: Workflow) -> None:
    with Image.open(host.base / "input" / "garbled_cup.png") as file:
        before = np.asarray(file).astype(int)
    rows, columns = np.nonzero(before[..., 3] == 0)
    changed = (run(host, repair) != before[..., :3]).any(-1)
    assert changed[before[..., 3] == 0].mean() > 0.9
    changed[rows.min() - FEATHER : rows.max() + 1 + FEATHER, columns.min() - FEATHER : columns.max() + 1 + FEATHER] = 0
    assert not changed.any()


def test_no_match_is_a_warning_and_not_an_error(host: HeadlessHost, repair: Workflow) -> None:
    with Image.open(host.base / "input" / "garbled_cup.png") as file:
        before = np.asarray(file.convert("RGB")).astype(int)
    assert np.array_equal(run(host, set_inputs(repair, "RefineByAlign", minimum_contrast=100.0)), before)
    assert "RefineByAlign: The reference shows no match for 1 of 1 areas" in host.log()


def test_wrong_input_is_answered_with_node_and_reason(host: HeadlessHost, repair: Workflow) -> None:
    with pytest.raises(WorkflowError, match=r"\(RefineByAlign\): layers names 'output.99'"):
        run(host, set_inputs(repair, "RefineByAlign", layers="output.99"))
