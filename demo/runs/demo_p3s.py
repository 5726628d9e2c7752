"""The P3S part of `make demo`: a small training, then one prompt without, training-free and with what was learnt."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from world_host import WorldHost, inputs, small

from demo_cast import CAT, CHEERING, SAME_CAT, STANDING, WAVING, alone, together
from demo_host import load_workflow, set_inputs
from demo_point_mask import POINTS, pointed, with_points
from demo_sheet import contact_sheet

# The demo's models are small, so they learn in few minutes, at ten times the paper's rate.
TRAINING = {"epochs": 80, "learning_rate": 1e-4, "mixed_precision": False, "gradient_checkpointing": False}
PROMPT = "a sks cat waving on the beach, flat cartoon"
# Pictures of the subject to learn from
VIEWS = ((STANDING, "room"), (WAVING, "snow"), (CHEERING, "city"), (STANDING, "forest"))


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
    cells = [("points", with_points(host.input(pair), folder / "p3s_points.png"))]
    for label, picture in results.items():
        target = folder / f"p3s_{label}.png"
        shutil.copyfile(picture, target)
        if label != "loss":  # whose text nobody could read in a cell
            cells.append((label, target))
    print(f"demo: P3S, training and three pictures done in {time.monotonic() - started:.1f} s", flush=True)
    sheet = folder / "p3s_contact_sheet.png"
    contact_sheet([cells]).save(sheet)
    return sheet


def _workflow(picture: str, views: list[str]) -> dict[str, Any]:
    """The template of training, on more pictures of the subject than the one that the subject is chosen in."""
    workflow = small(load_workflow("p3s_train"), prompt=PROMPT, seed=7)
    workflow = pointed(workflow, picture, *POINTS.values(), radius=2)
    train = inputs(workflow, "P3STrain")
    train.update(TRAINING, class_word="cat", prompt="a {identifier} {class_word}, flat cartoon", preview_every=0)
    del train["masks"]
    for number, view in enumerate(views):
        workflow[f"view {number}"] = _node("LoadImage", image=view)
    train["images"] = ["view 0", 0]
    for number in range(1, len(views)):
        workflow[f"views to {number}"] = _node("ImageBatch", image1=train["images"], image2=[f"view {number}", 0])
        train["images"] = [f"views to {number}", 0]
    return workflow


def _node(class_type: str, **values: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": values, "_meta": {"title": class_type}}


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
