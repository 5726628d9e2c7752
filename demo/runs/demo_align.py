"""The repair part of `make demo`: artifact, heat map over the reference, and the repaired picture on one sheet."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from demo_host import PHOTO, load_workflow, set_inputs
from demo_sheet import contact_sheet
from host import HeadlessHost

# The demo's model compares colours, and only there; see demo/README.md.
LAYERS = "output.10, output.11"
STEPS, SIZE = 8, 320
CELL = (420, 240)


def run(host: HeadlessHost, folder: Path) -> Path:
    """Runs the workflow and returns the path of its sheet."""
    started = time.monotonic()
    workflow = set_inputs(
        load_workflow("refine_by_align"), "RefineByAlign", layers=LAYERS, steps=STEPS, working_size=SIZE
    )
    entry = host.run(workflow)
    cells = [
        ("with artifact", host.base / "input" / "refattention_garbled_cup.png"),
        ("reference", PHOTO.with_name("refattention_two_cups.jpg")),
    ]
    for node, label in (("8", "where it looks"), ("7", "repaired")):
        target = folder / f"align_{label.replace(' ', '_')}.png"
        shutil.copyfile(host.images({"outputs": {node: entry["outputs"][node]}})[0], target)
        cells.append((label, target))
    print(f"demo: Refine by Align done in {time.monotonic() - started:.1f} s", flush=True)
    sheet = folder / "align_contact_sheet.png"
    contact_sheet(cells, CELL).save(sheet)
    return sheet
