"""The P3S part of `make demo`: a small training, then one prompt without, training-free and with what was learnt."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from world_host import WorldHost, inputs, small

from demo_cast import CAT, SAME_CAT, together
from demo_host import load_workflow, set_inputs
from demo_point_mask import pointed
from demo_sheet import contact_sheet

# The demo's models are small, so they learn in few minutes, at a higher rate.
TRAINING = {"epochs": 200, "learning_rate": 1e-4, "mixed_precision": False, "gradient_checkpointing": False}
PROMPT = "a cat waving on the beach, flat cartoon"


def run(host: WorldHost, folder: Path) -> Path:
    """Trains and samples, and returns the path of the sheet."""
    started = time.monotonic()
    workflow = _workflow(host.put_picture("two_cats", together(CAT, SAME_CAT)))
    names = {"p3s_loss": "loss", "p3s_train": "trained"}
    trained = {names[path.name.rsplit("_", 2)[0]]: path for path in host.images(host.run(workflow))}
    others = {"without": _without(workflow), "training-free": _training_free(workflow)}
    results = {label: host.images(host.run(each))[0] for label, each in others.items()} | trained
    cells = [("picture", host.base / "input" / "two_cats.png")]
    for label, picture in results.items():
        target = folder / f"p3s_{label}.png"
        shutil.copyfile(picture, target)
        cells.append((label, target))
    print(f"demo: P3S, training and three pictures done in {time.monotonic() - started:.1f} s", flush=True)
    sheet = folder / "p3s_contact_sheet.png"
    contact_sheet([cells]).save(sheet)
    return sheet


def _workflow(picture: str) -> dict[str, Any]:
    workflow = pointed(small(load_workflow("p3s_train"), prompt=PROMPT, seed=7), picture)
    inputs(workflow, "P3STrain").update(TRAINING, class_word="cat", prompt="a {identifier} {class_word}, flat cartoon")
    inputs(workflow, "P3STrain")["preview_every"] = 0
    return workflow


def _training_free(workflow: dict[str, Any]) -> dict[str, Any]:
    """The same graph without the nodes of the training."""
    kept = {name: node for name, node in workflow.items() if node["class_type"] not in ("P3STrain", "P3SSave")}
    kept = {name: node for name, node in kept.items() if node["_meta"]["title"] != "Loss"}
    copy = set_inputs(kept, "P3SInject", strength=1.0)
    del inputs(copy, "P3SInject")["adapter"], inputs(copy, "P3SInject")["clip_vision"]
    return copy


def _without(workflow: dict[str, Any]) -> dict[str, Any]:
    return set_inputs(_training_free(workflow), "P3SInject", strength=0.0)
