"""The published Leffa workflows on a real server, from the picture files to the picture file."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pixels import check_memory_stays, painted

from demo_host import load_workflow, set_inputs
from host import HeadlessHost, WorkflowError, describe_failure

pytestmark = pytest.mark.e2e
Workflow = dict[str, Any]
NAMES = ["leffa_tryon", "leffa_pose_transfer"]
SMALL = 96, 128


def small(host: HeadlessHost, workflow: Workflow, steps: int = 2) -> Workflow:
    """The same workflow on small pictures."""
    for node in workflow.values():
        if node["class_type"] == "LoadImage" and not node["inputs"]["image"].startswith("small_"):
            source = host.base / "input" / node["inputs"]["image"]
            with Image.open(source) as picture:
                picture.resize(SMALL, Image.Resampling.NEAREST).save(source.with_name(f"small_{source.stem}.png"))
            node["inputs"]["image"] = f"small_{source.stem}.png"
    return set_inputs(workflow, "KSampler", steps=steps)


@pytest.mark.parametrize("name", NAMES)
def test_published_workflow_runs(host: HeadlessHost, name: str) -> None:
    picture = painted(host, small(host, load_workflow(name)))
    assert picture.shape == (SMALL[1], SMALL[0], 3)
    assert picture.std() > 5


def test_nothing_outside_the_mask_changes(host: HeadlessHost) -> None:
    picture = painted(host, small(host, load_workflow("leffa_tryon")))
    with Image.open(host.base / "input" / "small_refattention_person.png") as person:
        change = np.abs(picture - np.asarray(person)).max(axis=-1) > 0
    assert 0.2 < change.mean() < 0.7
    assert not change[:30].any()


def test_another_garment_and_the_same_again(host: HeadlessHost) -> None:
    workflow = small(host, load_workflow("leffa_tryon"))
    first = painted(host, set_inputs(workflow, "KSampler", seed=31))
    other = json.loads(json.dumps(workflow))
    for node in other.values():
        if node["inputs"].get("image") == "small_refattention_garment.png":
            node["inputs"]["image"] = "small_refattention_densepose.png"
    assert np.abs(painted(host, set_inputs(other, "KSampler", seed=31)) - first).max() > 1
    host.free()
    np.testing.assert_array_equal(painted(host, set_inputs(workflow, "KSampler", seed=31)), first)


def test_20_runs_do_not_grow_memory(host: HeadlessHost) -> None:
    workflow = small(host, load_workflow("leffa_tryon"))
    check_memory_stays(host, [set_inputs(workflow, "KSampler", seed=seed) for seed in range(100, 120)])


def test_cancelled_run_leaves_the_host_able_to_run(host: HeadlessHost) -> None:
    workflow = small(host, load_workflow("leffa_tryon"), steps=3)
    before = painted(host, workflow)
    logged = len(host.log())
    prompt_id = host.queue(set_inputs(workflow, "KSampler", steps=1000))
    limit = time.monotonic() + 60
    while "%|" not in host.log()[logged:]:
        assert time.monotonic() < limit, "the sampler did not start"
        time.sleep(0.05)
    host.interrupt()
    status = host.wait(prompt_id, timeout=120)["status"]
    assert status["status_str"] == "error"
    assert describe_failure(status["messages"]).endswith("(KSampler): interrupted")
    host.free()
    np.testing.assert_array_equal(painted(host, workflow), before)


def test_errors_name_node_and_reason(host: HeadlessHost) -> None:
    workflow = small(host, load_workflow("leffa_tryon"))
    for node in workflow.values():
        if node["inputs"].get("image") == "small_refattention_densepose.png":
            node["inputs"]["image"] = "refattention_densepose.png"
    with pytest.raises(WorkflowError, match=r"\(LeffaTryOn\): densepose is 240 x 320 pixels, but image is 96 x 128"):
        painted(host, workflow)
    bottom = set_inputs(small(host, load_workflow("leffa_tryon")), "LeffaMask", garment_type="lower_body")
    with pytest.raises(WorkflowError, match=r"\(LeffaMask\): parsing holds nothing to replace .* lower_body"):
        painted(host, bottom)
