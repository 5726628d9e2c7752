"""The P3S part of `make demo`: a small training, then one prompt without, training-free and with what was learnt."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from demo_host import PHOTOS, load_workflow, set_inputs
from demo_sheet import contact_sheet
from host import HeadlessHost

# The demo's models are small and know nothing, so they learn in few steps, at a higher rate, from a small picture.
TRAINING = {"epochs": 60, "learning_rate": 1e-3, "mixed_precision": False, "gradient_checkpointing": False}
SMALL: dict[str, dict[str, Any]] = {
    "P3STrain": {**TRAINING, "preview_every": 0},
    "ImageScaleToTotalPixels": {"megapixels": 0.03},
    "EmptyLatentImage": {"width": 256, "height": 256},
    # Guidance would only blow up the colours of models like these.
    "KSampler": {"steps": 12, "cfg": 1.0},
}


def run(host: HeadlessHost, folder: Path) -> Path:
    """Trains and samples, and returns the path of the sheet."""
    started = time.monotonic()
    workflow = load_workflow("p3s_train")
    for node, inputs in SMALL.items():
        workflow = set_inputs(workflow, node, **inputs)
    cells = [("picture", PHOTOS / "refattention_two_cups.jpg")]
    names = {"p3s_loss": "loss", "p3s_train": "trained"}
    trained = {names[path.name.rsplit("_", 2)[0]]: path for path in host.images(host.run(workflow))}
    others = {"without": _without(workflow), "training-free": _training_free(workflow)}
    results = {label: host.images(host.run(each))[0] for label, each in others.items()} | trained
    for label, picture in results.items():
        target = folder / f"p3s_{label}.png"
        shutil.copyfile(picture, target)
        cells.append((label, target))
    print(f"demo: P3S, training and three pictures done in {time.monotonic() - started:.1f} s", flush=True)
    sheet = folder / "p3s_contact_sheet.png"
    contact_sheet(cells).save(sheet)
    return sheet


def _training_free(workflow: dict[str, Any]) -> dict[str, Any]:
    """The same graph without the nodes of the training."""
    kept = {name: node for name, node in workflow.items() if node["class_type"] not in ("P3STrain", "P3SSave")}
    kept = {name: node for name, node in kept.items() if node["_meta"]["title"] != "Loss"}
    copy = set_inputs(kept, "P3SInject", strength=1.0)
    for node in copy.values():
        if node["class_type"] == "P3SInject":
            del node["inputs"]["adapter"], node["inputs"]["clip_vision"]
    return copy


def _without(workflow: dict[str, Any]) -> dict[str, Any]:
    return set_inputs(_training_free(workflow), "P3SInject", strength=0.0)
