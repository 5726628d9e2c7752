"""The P3S part of `make demo`: a small training, then one prompt without, training-free and with what was learnt."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from world_host import WorldHost, inputs, small

from demo_cast import CAT, CHEERING, SAME_CAT, STANDING, WAVING, alone, together
from demo_host import load_batch, load_workflow, new_node, set_inputs
from demo_point_mask import POINTS, Point, pointed, with_points
from demo_sheet import contact_sheet

# The demo's models are small, so they learn in few minutes, at a hundred times the paper's rate; from all pictures in
# each step.
TRAINING = {
    "epochs": 160, "batch_size": 4, "learning_rate": 1e-3, "mixed_precision": False, "gradient_checkpointing": False,
}  # fmt: skip
PROMPT = "a sks cat waving on the beach, flat cartoon"
# Pictures of the subject to learn from, beside the one of two; and a point on its shirt in each
VIEWS = ((WAVING, "snow"), (CHEERING, "city"), (STANDING, "forest"))
ON_SHIRT = 64, 100
SAID = {"without": "without reference"}  # labels that differ from the file's name


def run(host: WorldHost, folder: Path) -> Path:
    """Trains and samples, and returns the path of the sheet."""
    started = time.monotonic()
    views = [host.put_picture(f"view_{n}", alone(CAT, *view)) for n, view in enumerate(VIEWS)]
    pair = host.put_picture("two_cats", together(CAT, SAME_CAT))
    workflow = _workflow(pair, views)
    names = {"p3s_loss": "loss", "p3s_train": "trained"}
    trained = {names[path.name.rsplit("_", 2)[0]]: path for path in host.images(host.run(workflow))}
    others = {"without": _without(workflow), "training-free": _training_free(workflow)}
    results = {label: host.images(host.run(each))[0] for label, each in others.items()} | trained
    cells = [("+ subject, - look-alike", with_points(host.input(pair), folder / "p3s_points.png"))]
    for label, picture in results.items():
        target = folder / f"p3s_{label}.png"
        shutil.copyfile(picture, target)
        if label != "loss":  # whose text nobody could read in a cell
            cells.append((SAID.get(label, label), target))
    print(f"demo: P3S, training and three pictures done in {time.monotonic() - started:.1f} s", flush=True)
    sheet = folder / "p3s_contact_sheet.png"
    contact_sheet([cells]).save(sheet)
    return sheet


def _workflow(picture: str, views: list[str]) -> dict[str, Any]:
    """The template of training, on more pictures of the subject than the one that the subject is chosen in."""
    workflow = small(load_workflow("p3s_train"), prompt=PROMPT, seed=7)
    chosen, other = POINTS.values()
    return learning(workflow, [picture, *views], [chosen, *[ON_SHIRT] * len(views)], other, "cat")


def learning(
    workflow: dict[str, Any], files: list[str], subject: list[Point], other: Point, class_word: str
) -> dict[str, Any]:
    """The template, with points on the subject in each of several pictures that it learns from.

    The first of them, which is the reference, too, also shows the other, which is pointed at as well.
    """
    workflow = pointed(workflow, files[0], subject[0], other, radius=2)
    load_batch(workflow, "views", files)
    points = [[[point] for point in subject], [[other], *[[]] * (len(files) - 1)]]
    said = {
        name: json.dumps([[dict(zip("xy", point, strict=True)) for point in of_picture] for of_picture in each])
        for name, each in zip(POINTS, points, strict=True)
    }
    settings = {**inputs(workflow, "PointMask"), "image": ["views", 0], **said}
    workflow["views' points"] = new_node("PointMask", **settings)
    inputs(workflow, "P3STrain").update(
        TRAINING, images=["views' points", 2], masks=["views' points", 0], class_word=class_word,
        prompt="a {identifier} {class_word}, flat cartoon", preview_every=0,
    )  # fmt: skip
    return workflow


def _training_free(workflow: dict[str, Any]) -> dict[str, Any]:
    """The same graph without the nodes of the training."""
    kept = {name: node for name, node in workflow.items() if node["class_type"] not in ("P3STrain", "P3SSave")}
    kept = {name: node for name, node in kept.items() if node["_meta"]["title"] != "Loss"}
    kept = {name: node for name, node in kept.items() if not name.startswith("view")}
    copy = set_inputs(kept, "P3SInject", strength=1.0)
    del inputs(copy, "P3SInject")["adapter"], inputs(copy, "P3SInject")["clip_vision"]
    return copy


def _without(workflow: dict[str, Any]) -> dict[str, Any]:
    return set_inputs(_training_free(workflow), "P3SInject", strength=0.0)
