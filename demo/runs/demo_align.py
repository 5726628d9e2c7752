"""The repair part of `make demo`: artifact, heat map over the reference, and the repaired picture on one sheet."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from world_host import WorldHost, inputs

from demo_cast import BEAR, STANDING, WAVING, alone
from demo_host import demo_module, load_workflow
from demo_sheet import contact_sheet

STEPS, SIZE = 20, 128
SPOILED = "spoiled_logo.png"


def run(host: WorldHost, folder: Path) -> Path:
    """Runs the workflow and returns the path of its sheet."""
    started = time.monotonic()
    put_pictures(host)
    workflow = load_workflow("refine_by_align")
    inputs(workflow, "LoadImage", "Picture with the artifact, masked")["image"] = SPOILED
    inputs(workflow, "LoadImage", "Reference without it")["image"] = "logo_reference.png"
    inputs(workflow, "CLIPTextEncode", "What the area shows")["text"] = (
        "a bear wearing a purple shirt with a white star, flat cartoon"
    )
    inputs(workflow, "CLIPTextEncode", "What it does not show")["text"] = ""
    inputs(workflow, "RefineByAlign").update(steps=STEPS, working_size=SIZE, feather=2)
    entry = host.run(workflow)
    cells = [
        ("with artifact", host.base / "input" / SPOILED),
        ("reference", host.base / "input" / "logo_reference.png"),
    ]
    for node, label in (("8", "where it looks"), ("7", "repaired")):
        target = folder / f"align_{label.replace(' ', '_')}.png"
        shutil.copyfile(host.images({"outputs": {node: entry["outputs"][node]}})[0], target)
        cells.append((label, target))
    print(f"demo: Refine by Align done in {time.monotonic() - started:.1f} s", flush=True)
    sheet = folder / "align_contact_sheet.png"
    contact_sheet([cells]).save(sheet)
    return sheet


def put_pictures(host: WorldHost) -> None:
    """A bear whose star is garbled, masked there, and the same bear elsewhere."""
    draw, truth = demo_module("world.draw"), demo_module("world.truth")
    whole = alone(BEAR, STANDING, "city")
    spoiled = alone(replace(BEAR, shirt=replace(BEAR.shirt, spoiled=3)), STANDING, "city")
    kept = np.where(truth.logo(whole), 0, 255).astype(np.uint8)
    Image.fromarray(np.dstack([draw.picture(spoiled), kept])).save(host.base / "input" / SPOILED)
    host.put_picture("logo_reference", alone(BEAR, WAVING, "beach"))
