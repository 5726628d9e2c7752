"""The published workflows that the demo models can run, made small, and changed at random."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from demo_host import API_WORKFLOWS, load_workflow

Workflow = dict[str, Any]
NEED_OTHER_MODELS = {
    *("refdrop_flux", "refdrop_svd", "refdrop_wan", "p3s_trained", "refdrop_kept"),
    *("refine_trained", "refine_qwen_image_edit", "refine_flux_kontext"),
}
RUN_ONCE = {"deadiff_extract"}  # never writes over its file
NEED_CONSENT = {"leffa_without_packs"}  # stops until the user agrees to run a file's code
NAMES = sorted({path.stem for path in API_WORKFLOWS.glob("*.json")} - NEED_OTHER_MODELS - RUN_ONCE - NEED_CONSENT)
PICTURES = 4  # times smaller
SMALL: dict[str, Any] = {"width": 128, "height": 96, "steps": 2, "megapixels": 0.02, "epochs": 1, "working_size": 128}


def write_small_pictures(folder: Path) -> None:
    """Puts a small copy of each input picture beside it."""
    for path in [*folder.glob("*.jpg"), *folder.glob("*.png")]:
        if not path.name.startswith("small_"):
            with Image.open(path) as picture:
                # Maps of labels have no colours in between.
                way = Image.Resampling.NEAREST if path.suffix == ".png" else Image.Resampling.BOX
                size = picture.width // PICTURES, picture.height // PICTURES
                picture.resize(size, way).save(folder / f"small_{path.name}")


def set_small(node: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Sets those of the values that a node has; a mask of a part of the picture stays one of a part."""
    inputs = node["inputs"]
    if node["class_type"] == "SolidMask":
        inputs |= {key: inputs[key] // PICTURES for key in ("width", "height")}
    else:
        inputs |= {key: value for key, value in values.items() if isinstance(inputs.get(key), (int, float))}


def small(name: str) -> Workflow:
    """A published workflow that takes a second or two."""
    workflow = load_workflow(name)
    for node in workflow.values():
        inputs = node["inputs"]
        set_small(node, SMALL)
        if node["class_type"] == "LoadImage":
            inputs["image"] = f"small_{inputs['image']}"
        for key in ("positive_coords", "negative_coords"):
            if isinstance(inputs.get(key), str):
                points = json.loads(inputs[key] or "[]")
                inputs[key] = json.dumps([{"x": p["x"] // PICTURES, "y": p["y"] // PICTURES} for p in points])
    return workflow


def with_seed(workflow: Workflow, seed: int) -> Workflow:
    """Other seeds, so that the host has to sample again."""
    for node in workflow.values():
        for key in node["inputs"]:
            if key in ("seed", "noise_seed"):
                node["inputs"][key] = seed
    return workflow


def with_random_widgets(
    workflow: Workflow, object_info: Mapping[str, Any], own: set[str], chance: random.Random
) -> Workflow:
    """Random values, some of them not allowed, on one to four widgets of the pack's nodes (`own`)."""
    widgets = [
        (node["inputs"], key, spec)
        for node in workflow.values()
        if node["class_type"] in own
        for section in object_info[node["class_type"]]["input"].values()
        for key, spec in section.items()
        if key in node["inputs"] and not isinstance(node["inputs"][key], list)
    ]
    for inputs, key, (kind, *rest) in chance.sample(widgets, min(len(widgets), chance.randint(1, 4))):
        options = rest[0] if rest else {}
        inputs[key] = _random_value(kind, options, chance)
    return workflow


def _random_value(kind: Any, options: Mapping[str, Any], chance: random.Random) -> Any:
    choices = kind if isinstance(kind, list) else options.get("options") or []
    low, high = options.get("min", -10), options.get("max", 10)
    strange = [0, -1, 1e30, "", "nonsense", "[]", '[{"x": 1}]', "input.4,output", None, True, [], {"a": 1}, "\u2028é"]
    if chance.random() < 0.1:
        return chance.choice(strange)
    if kind == "BOOLEAN":
        return chance.random() < 0.5
    if kind == "INT":
        # Large counts are allowed and only slow.
        return chance.choice([low, chance.randint(int(low), int(min(high, low + 40)))])
    if kind == "FLOAT":
        return chance.choice([low, high, round(chance.uniform(low, high), 3)])
    if choices:
        return chance.choice(list(choices))
    return chance.choice([value for value in strange if isinstance(value, str)])
