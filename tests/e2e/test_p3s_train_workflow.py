"""The published training workflow on a real server: learn a subject, save it, use it, load it again."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from pixels import pixels

from demo_host import load_workflow, set_inputs
from host import HeadlessHost, describe_failure

pytestmark = pytest.mark.e2e
Workflow = dict[str, Any]


@pytest.fixture
def training() -> Workflow:
    """The published workflow with a small picture, few steps and a short training."""
    workflow = set_inputs(load_workflow("p3s_train"), "EmptyLatentImage", width=128, height=128)
    workflow = set_inputs(workflow, "ImageScaleToTotalPixels", megapixels=0.01)
    workflow = set_inputs(workflow, "P3STrain", epochs=2, learning_rate=1e-3, preview_every=0, mixed_precision=False)
    return set_inputs(workflow, "KSampler", steps=2)


def pictures(host: HeadlessHost, workflow: Workflow) -> dict[str, np.ndarray]:
    """What was saved, by the prefix of the file."""
    return {path.name.rsplit("_", 2)[0]: pixels(path) for path in host.images(host.run(workflow, timeout=240))}


def with_loader(workflow: Workflow, name: str) -> Workflow:
    """Uses a saved adapter instead of training one."""
    kept = {key: node for key, node in workflow.items() if key not in ("13", "14", "15")}
    kept["20"] = {"class_type": "P3SLoad", "inputs": {"adapter_name": name}}
    return set_inputs(kept, "P3SInject", adapter=["20", 0])


def test_what_is_trained_is_used_saved_and_loaded(host: HeadlessHost, training: Workflow) -> None:
    saved = pictures(host, training)
    assert saved["p3s_loss"].shape == (512, 768, 3)
    (path,) = (host.base / "models" / "model_patches" / "p3s").glob("cup_00001_*")
    loaded = pictures(host, with_loader(training, f"p3s/{path.name}"))
    np.testing.assert_array_equal(loaded["p3s_train"], saved["p3s_train"])
    published = set_inputs(load_workflow("p3s_trained"), "P3SLoad", adapter_name=f"p3s/{path.name}")
    published = set_inputs(set_inputs(published, "EmptyLatentImage", width=128, height=128), "KSampler", steps=2)
    assert pictures(host, published)["p3s_trained"].std() > 1
    off = pictures(host, set_inputs(with_loader(training, f"p3s/{path.name}"), "P3SInject", strength=0.0))
    assert np.abs(off["p3s_train"] - saved["p3s_train"]).mean() > 0.5


def test_cancelling_leaves_an_adapter(host: HeadlessHost, training: Workflow) -> None:
    logged, folder = len(host.log()), host.base / "models" / "model_patches" / "p3s"
    for seconds in (2, 8, 32):  # how long the first step takes, of which something is learnt, depends on the machine
        prompt_id = host.queue(set_inputs(training, "P3STrain", epochs=10000, seed=seconds))
        started, limit = host.log().count("Training an adapter: 10000 steps"), time.monotonic() + 120
        while host.log().count("Training an adapter: 10000 steps") == started:
            assert time.monotonic() < limit, "the training did not start"
            time.sleep(0.1)
        time.sleep(seconds)
        host.interrupt()
        status = host.wait(prompt_id, timeout=120)["status"]
        assert describe_failure(status["messages"]).endswith("(P3STrain): interrupted")
        if list(folder.glob("interrupted_*")):
            break
    (path,) = folder.glob("interrupted_*")
    assert f"p3s/{path.name}" in host.log()[logged:]
    assert pictures(host, with_loader(training, f"p3s/{path.name}"))["p3s_train"].std() > 1
