"""The published DEADiff workflow on a real server, from the picture file to the picture file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from pixels import painted

from demo_host import load_workflow, set_inputs
from host import HeadlessHost, WorkflowError

pytestmark = pytest.mark.e2e
Workflow = dict[str, Any]


def small(workflow: Workflow) -> Workflow:
    workflow = set_inputs(workflow, "EmptyLatentImage", width=256, height=192)
    return set_inputs(workflow, "KSampler", steps=5)


@pytest.fixture
def deadiff() -> Workflow:
    return small(load_workflow("deadiff"))


def run(host: HeadlessHost, workflow: Workflow, **style: Any) -> np.ndarray:
    if style:
        workflow = set_inputs(workflow, "DEADiffStyle", **style)
    return painted(host, workflow)


def solid(host: HeadlessHost, colour: tuple[int, int, int]) -> str:
    target = host.base / "input" / f"solid_{'_'.join(map(str, colour))}.png"
    Image.new("RGB", (80, 50), colour).save(target)
    return target.name


def test_the_style_acts_and_the_bypassed_node_does_not(host: HeadlessHost, deadiff: Workflow) -> None:
    styled = run(host, deadiff)
    assert styled.shape == (192, 256, 3) and styled.std() > 5
    plain = {name: node for name, node in deadiff.items() if node["class_type"] != "DEADiffStyle"}
    plain = set_inputs(plain, "KSampler", model=["1", 0])
    without = run(host, plain)
    assert np.abs(styled - without).mean() > 0.5
    np.testing.assert_array_equal(run(host, deadiff, strict=False, strength=0.0), without)


def test_the_stand_ins_style_is_the_colour_of_the_reference(host: HeadlessHost, deadiff: Workflow) -> None:
    red, blue = (
        run(host, set_inputs(deadiff, "LoadImage", image=solid(host, colour))).mean((0, 1))
        for colour in ((200, 40, 30), (30, 60, 200))
    )
    assert red[0] - red[2] > blue[0] - blue[2] + 10


def test_official_loop_with_custom_sampling(host: HeadlessHost, deadiff: Workflow) -> None:
    official = set_inputs(load_workflow("deadiff_official_loop"), "EmptyLatentImage", width=256, height=192)
    official = set_inputs(official, "DEADiffSampler", steps=5)
    assert 0 < np.abs(run(host, official) - run(host, deadiff)).mean() < 30


def test_extracted_file_gives_the_same_picture(host: HeadlessHost, deadiff: Workflow) -> None:
    extract = load_workflow("deadiff_extract")
    host.run(extract)
    name = extract["1"]["inputs"]["filename"]
    np.testing.assert_array_equal(
        run(host, set_inputs(deadiff, "DEADiffLoader", deadiff_name=name)), run(host, deadiff)
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"strength": 3.0}, r"\(DEADiffStyle\): Value 3.0 bigger than max of 2.0: strength", id="range"),
        pytest.param({"mode": "dog"}, r"\(DEADiffStyle\): Value not in list: mode: 'dog'", id="choice"),
        pytest.param({"content_image": ["2", 0]}, r"\(DEADiffStyle\): content_image is connected", id="mode"),
        pytest.param({"start_percent": 0.8, "end_percent": 0.2}, r"\(DEADiffStyle\): start_percent", id="order"),
    ],
)
def test_bad_input_is_answered_with_node_and_reason(
    host: HeadlessHost, deadiff: Workflow, values: dict[str, Any], message: str
) -> None:
    deadiff["7"]["inputs"].update(values)
    with pytest.raises(WorkflowError, match=message):
        run(host, deadiff)


def test_a_model_of_another_family_is_named(host: HeadlessHost, deadiff: Workflow) -> None:
    with pytest.raises(WorkflowError, match=r"\(DEADiffStyle\): DEADiff Style needs an SD1.5 model.*got DemoSDXL"):
        run(host, set_inputs(deadiff, "CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors"))


def test_10_runs_do_not_grow_memory(host: HeadlessHost, deadiff: Workflow) -> None:
    peaks = []
    for seed in range(100, 110):
        host.reset_peak_rss()
        run(host, set_inputs(deadiff, "KSampler", seed=seed))
        peaks.append(host.peak_rss_bytes())
    assert peaks[-1] <= 1.02 * peaks[2], [f"{peak / 2**20:.0f} MiB" for peak in peaks]
