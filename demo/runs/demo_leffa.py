"""The try-on part of `make demo`: person, garment, mask and result on one sheet."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from demo_host import load_workflow, set_inputs
from demo_sheet import contact_sheet
from host import HeadlessHost

# Enough for what untrained weights can show; guidance would only blow up their colours.
STEPS, CFG = 8, 1.0


def run(host: HeadlessHost, folder: Path) -> Path:
    """Runs the try-on workflow and returns the path of its sheet."""
    started = time.monotonic()
    workflow = set_inputs(load_workflow("leffa_tryon"), "KSampler", steps=STEPS, cfg=CFG)
    mask = next(name for name, node in workflow.items() if node["class_type"] == "LeffaMask")
    workflow["mask picture"] = {"class_type": "MaskToImage", "inputs": {"mask": [mask, 0]}}
    workflow["save mask"] = {
        "class_type": "SaveImage",
        "inputs": {"images": ["mask picture", 0], "filename_prefix": "leffa_mask"},
    }
    cells = []
    for picture in host.images(host.run(workflow)):
        label = "mask" if picture.name.startswith("leffa_mask") else "result"
        target = folder / f"leffa_{label}.png"
        shutil.copyfile(picture, target)
        cells.append((label, target))
    files = {"person": "refattention_person.jpg", "garment": "refattention_garment.png"}
    inputs = [(name, host.base / "input" / file) for name, file in files.items()]
    print(f"demo: try-on done in {time.monotonic() - started:.1f} s", flush=True)
    sheet = folder / "leffa_contact_sheet.png"
    contact_sheet([*inputs, *sorted(cells)]).save(sheet)
    return sheet
