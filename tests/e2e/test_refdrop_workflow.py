"""The published RefDrop workflow on a real server, from the picture file to the picture file."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pixels import check_memory_stays, painted

from demo_host import load_workflow, set_inputs
from host import HeadlessHost, WorkflowError, describe_failure
from workflow import ui_to_api

pytestmark = pytest.mark.e2e
Workflow = dict[str, Any]
Shrink = Callable[[Workflow], Workflow]


def run(host: HeadlessHost, workflow: Workflow, **refdrop: Any) -> np.ndarray:
    if refdrop:
        workflow = set_inputs(workflow, "RefDropApply", **refdrop)
    return painted(host, workflow)


def test_published_workflow_runs(host: HeadlessHost, small_workflow: Workflow) -> None:
    picture = run(host, small_workflow)
    assert picture.shape == (192, 256, 3)
    assert picture.std() > 5


def test_template_runs(host: HeadlessHost, template: Workflow, small: Shrink) -> None:
    converted = small(ui_to_api(template, host.object_info()))
    # A seed of its own, because the host would answer the same workflow from its cache.
    picture = run(host, set_inputs(converted, "KSampler", seed=21))
    assert picture.shape == (192, 256, 3)
    assert picture.std() > 5


def test_strength_0_is_the_picture_without_the_node(host: HeadlessHost, template: Workflow, small: Shrink) -> None:
    info = host.object_info()
    patched = small(ui_to_api(template, info))
    for node in template["nodes"]:
        if node["type"] == "RefDropApply":
            node["mode"] = 4
    plain = run(host, small(ui_to_api(template, info)))
    np.testing.assert_array_equal(run(host, patched, strength=0.0), plain)
    assert np.abs(run(host, patched, strength=0.6) - plain).mean() > 1


def test_odd_sizes_of_picture_and_reference(host: HeadlessHost, small_workflow: Workflow) -> None:
    odd = set_inputs(small_workflow, "EmptyLatentImage", width=264, height=200)
    odd = set_inputs(odd, "ImageScaleToTotalPixels", megapixels=0.03)
    assert run(host, odd).shape == (200, 264, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"strength": 2.0}, r"\(RefDropApply\): Value 2.0 bigger than max of 1.0: strength", id="range"),
        pytest.param({"mode": "mix"}, r"\(RefDropApply\): Value not in list: mode: 'mix'", id="choice"),
        pytest.param({"blocks": "custom", "custom_blocks": "output.99"}, r"\(RefDropApply\): .*output\.99", id="block"),
        pytest.param({"start_percent": 0.8, "end_percent": 0.2}, r"\(RefDropApply\): .*start_percent", id="order"),
    ],
)
def test_bad_input_is_answered_with_node_and_reason(
    host: HeadlessHost, small_workflow: Workflow, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(WorkflowError, match=message):
        run(host, small_workflow, **values)


def test_prompt_without_reference_is_refused(host: HeadlessHost, small_workflow: Workflow) -> None:
    for node in small_workflow.values():
        if node["class_type"] == "RefDropApply":
            del node["inputs"]["reference_latent"]
    with pytest.raises(WorkflowError, match=r"\(RefDropApply\): .*reference_latent is not"):
        run(host, small_workflow)


def test_20_runs_do_not_grow_memory(host: HeadlessHost, small_workflow: Workflow) -> None:
    check_memory_stays(host, [set_inputs(small_workflow, "KSampler", seed=seed) for seed in range(100, 120)])


@pytest.fixture
def recorded_workflow() -> Workflow:
    """The template with a recorded picture, small."""
    workflow = set_inputs(load_workflow("refdrop_record"), "EmptyLatentImage", width=256, height=192)
    return set_inputs(set_inputs(workflow, "KSampler", steps=3), "RefDropRecord", steps=3)


def test_a_recorded_picture_guides_the_next(host: HeadlessHost, recorded_workflow: Workflow) -> None:
    first, second = (
        host.images(host.run(each))[-1]
        for each in (recorded_workflow, set_inputs(recorded_workflow, "RefDropApply", strength=0.0))
    )
    assert first.read_bytes() != second.read_bytes()
    with pytest.raises(WorkflowError, match=r"\(KSampler\): .*the cache holds 3 noise levels"):
        host.run(set_inputs(recorded_workflow, "KSampler", steps=4))


@pytest.mark.parametrize(
    ("name", "first", "again"),
    [
        ("refdrop", ["0 of them used again"], ["3 of them used again"]),
        ("refdrop_record", ["RefDrop Record: 3 noise levels"], []),
    ],
)
def test_free_memory_drops_what_was_kept(
    host: HeadlessHost,
    small_workflow: Workflow,
    recorded_workflow: Workflow,
    name: str,
    first: list[str],
    again: list[str],
) -> None:
    workflow = small_workflow if name == "refdrop" else recorded_workflow

    def said(seed: int) -> list[str]:
        """What is logged about references when the guided picture gets another seed."""
        logged = len(host.log())
        host.run(set_inputs(workflow, "KSampler", seed=seed))
        return re.findall(r"\d+ of them used again|RefDrop Record: \d+ noise levels", host.log()[logged:])

    host.free()
    assert said(31) == first
    assert said(32) == again
    host.free()
    assert said(33) == first


def wait_for_sampling(host: HeadlessHost, since: int, timeout: float = 60) -> None:
    """Returns once the sampler's progress bar has shown up in the log."""
    limit = time.monotonic() + timeout
    while "%|" not in host.log()[since:]:
        assert time.monotonic() < limit, "the sampler did not start"
        time.sleep(0.05)


def test_cancelled_run_leaves_the_host_able_to_run(
    host: HeadlessHost, workflow: Workflow, small_workflow: Workflow
) -> None:
    before = run(host, small_workflow)
    logged = len(host.log())
    prompt_id = host.queue(workflow)  # as published, without any change
    wait_for_sampling(host, logged)
    host.interrupt()
    status = host.wait(prompt_id, timeout=60)["status"]
    assert status["status_str"] == "error"
    assert describe_failure(status["messages"]).endswith("(KSampler): interrupted")
    # batch_references does nothing beside a reference_latent, but keeps the host from using its cache.
    np.testing.assert_array_equal(run(host, small_workflow, batch_references=2), before)
