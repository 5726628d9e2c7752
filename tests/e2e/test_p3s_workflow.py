"""The published P3S workflow on a real server: two clicks, then the subject in another scene."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pixels import painted

from demo_host import load_workflow, set_inputs
from host import HeadlessHost, WorkflowError

pytestmark = pytest.mark.e2e
Workflow = dict[str, Any]


@pytest.fixture
def p3s() -> Workflow:
    """The published workflow with a small picture and few steps."""
    workflow = set_inputs(load_workflow("p3s"), "EmptyLatentImage", width=192, height=128)
    return set_inputs(workflow, "KSampler", steps=3)


def run(host: HeadlessHost, workflow: Workflow, **values: Any) -> np.ndarray:
    if values:
        workflow = set_inputs(workflow, "P3SInject", **values)
    return painted(host, workflow)


def without_node(workflow: Workflow) -> Workflow:
    """The model goes from the loader to the sampler."""
    return {name: node for name, node in set_inputs(workflow, "KSampler", model=["1", 0]).items() if name != "8"}


def test_the_subject_changes_the_picture_and_strength_0_does_not(host: HeadlessHost, p3s: Workflow) -> None:
    picture, plain = run(host, p3s), run(host, without_node(p3s))
    assert picture.shape == (128, 192, 3) and picture.std() > 5
    assert np.abs(picture - plain).mean() > 1
    np.testing.assert_array_equal(run(host, p3s, strength=0.0), plain)


def drop(name: str) -> Callable[[Workflow], None]:
    return lambda workflow: workflow["8"]["inputs"].pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(drop("vae"), r"\(P3SInject\): .*vae is not", id="vae"),
        pytest.param(drop("reference_image"), r"\(P3SInject\): .*got no reference", id="reference"),
        pytest.param(
            lambda workflow: workflow["8"]["inputs"].update(strength=3.0),
            r"\(P3SInject\): Value 3.0 bigger than max of 2.0",
            id="range",
        ),
    ],
)
def test_bad_input_is_answered_with_node_and_reason(
    host: HeadlessHost, p3s: Workflow, change: Callable[[Workflow], None], message: str
) -> None:
    change(p3s)
    with pytest.raises(WorkflowError, match=message):
        run(host, p3s)
