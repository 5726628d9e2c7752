"""The templates of RefDrop for several subjects, diversity, a story and a kept character, on a real server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from pixels import pixels

from demo_host import load_workflow, set_inputs
from host import HeadlessHost, WorkflowError

pytestmark = pytest.mark.e2e
Workflow = dict[str, Any]
PICTURES = {"refdrop_two_subjects": 1, "refdrop_blend": 1, "refdrop_diversity": 4, "refdrop_story": 4}
SMALL: dict[str, Any] = {"width": 128, "height": 96, "steps": 3, "megapixels": 0.02}


def small(name: str) -> Workflow:
    workflow = load_workflow(name)
    for node in workflow.values():
        inputs = node["inputs"]
        inputs |= {key: value for key, value in SMALL.items() if isinstance(inputs.get(key), (int, float))}
    for node in workflow.values():
        if node["class_type"] == "SolidMask" and node["inputs"]["value"] == 1:
            node["inputs"]["width"] = 64
    return workflow


def run(host: HeadlessHost, workflow: Workflow) -> list[np.ndarray]:
    return [pixels(path) for path in sorted(host.images(host.run(workflow, timeout=240)))]


@pytest.mark.parametrize("name", PICTURES)
def test_the_references_act(host: HeadlessHost, name: str) -> None:
    guided, plain = (
        run(host, workflow) for workflow in (small(name), set_inputs(small(name), "RefDropApply", strength=0.0))
    )
    assert [each.shape for each in guided] == [(96, 128, 3)] * PICTURES[name]
    differences = [np.abs(one - other).mean() for one, other in zip(guided, plain, strict=True)]
    first, rest = differences[0], differences[1:]
    if rest:  # the first picture is the reference of the others
        assert first == 0 and min(rest) > 0.2
    else:
        assert first > 0.5


def test_each_subject_in_its_place(host: HeadlessHost) -> None:
    """One mask alone moves its own half the most."""
    workflow = small("refdrop_two_subjects")
    off = set_inputs(workflow, "RefDropApply", strength=0.0)
    (plain,) = run(host, off)
    for title, half in (("Left subject in its place", np.s_[:, :48]), ("Right subject in its place", np.s_[:, 80:])):
        one = {key: {**node, "inputs": dict(node["inputs"])} for key, node in off.items()}
        (chosen,) = (node for node in one.values() if node["_meta"]["title"] == title)
        chosen["inputs"]["strength"] = 0.4
        (picture,) = run(host, one)
        change = np.abs(picture - plain)
        other = np.s_[:, 80:] if half == np.s_[:, :48] else np.s_[:, :48]
        assert change[half].mean() > 2 * change[other].mean()


def test_a_kept_character(host: HeadlessHost) -> None:
    """From the file the same picture, bit by bit, as from the recording at hand; KSampler and SamplerCustom alike."""
    host.run(small("refdrop_keep"), timeout=240)
    path = max((host.base / "models" / "model_patches" / "refdrop").glob("character_*_.safetensors"))
    kept = set_inputs(small("refdrop_kept"), "RefDropLoad", recording_name=f"refdrop/{path.name}")
    (loaded,) = run(host, kept)
    recorded = small("refdrop_record")
    prompts = {"positive": "a photograph of a tabby cat", "next": "a tabby cat sleeping in a basket, photograph"}
    assert {node["inputs"]["text"] for node in recorded.values() if "text" in node["inputs"]} >= set(prompts.values())
    (story,) = [pixels(each) for each in host.images(host.run(recorded, timeout=240)) if "story" in each.name]
    np.testing.assert_array_equal(loaded, story)
    with pytest.raises(WorkflowError, match=r"\(RefDropApply\): cache was recorded with a DemoSD15 model"):
        run(host, set_inputs(kept, "CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors"))


def test_styles_in_regions(host: HeadlessHost) -> None:
    """The stand-in's style is the colour of the reference: each half gets more of its own."""
    workflow = small("deadiff_two_regions")
    red, blue = ("solid_red.png", (210, 40, 30)), ("solid_blue.png", (30, 60, 210))
    for name, colour in (red, blue):
        Image.new("RGB", (64, 64), colour).save(host.base / "input" / name)

    def redness(left: str, right: str) -> tuple[float, float]:
        workflow[_titled(workflow, "Style of the left half")]["inputs"]["image"] = left
        workflow[_titled(workflow, "Style of the right half")]["inputs"]["image"] = right
        (picture,) = run(host, workflow)
        difference = picture[..., 0] - picture[..., 2]
        return difference[:, :48].mean(), difference[:, 80:].mean()

    (one_left, one_right), (other_left, other_right) = redness(red[0], blue[0]), redness(blue[0], red[0])
    assert one_left > other_left + 1 and one_right < other_right - 1


def test_a_controlnet_beside_a_style(host: HeadlessHost) -> None:
    workflow = small("deadiff_controlnet")
    picture, *_ = run(host, workflow)
    without, *_ = run(host, set_inputs(workflow, "ControlNetApplyAdvanced", strength=0.0))
    plain = set_inputs(workflow, "DEADiffStyle", strict=False, strength=0.0)
    unstyled, *_ = run(host, plain)
    assert np.abs(picture - without).mean() > 0.5 and np.abs(picture - unstyled).mean() > 0.5


def _titled(workflow: Workflow, title: str) -> str:
    (name,) = (name for name, node in workflow.items() if node["_meta"]["title"] == title)
    return name
