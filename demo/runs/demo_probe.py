"""The probe's part of `make demo`: where the layers look in another picture of the same character."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from world_host import WorldHost, inputs

from demo_cast import BEAR, STANDING, WAVING, alone
from demo_host import load_workflow

POINT = {"x": 64, "y": 90}  # on the star of its shirt


def run(host: WorldHost, folder: Path) -> Path:
    """Runs the workflow and returns the path of its sheet."""
    started = time.monotonic()
    workflow = load_workflow("attention_probe")
    pictures = {"Picture that is looked from": (STANDING, "city"), "Reference that is looked at": (WAVING, "beach")}
    for title, (pose, scene) in pictures.items():
        inputs(workflow, "LoadImage", title)["image"] = host.put_picture(f"probe_{scene}", alone(BEAR, pose, scene))
    inputs(workflow, "CLIPTextEncode")["text"] = "a bear, flat cartoon"
    inputs(workflow, "AttentionProbe").update(positive_coords=json.dumps([POINT]), working_size=128)
    entry = host.run(workflow)
    sheet = folder / "probe_contact_sheet.png"
    shutil.copyfile(host.images({"outputs": {"6": entry["outputs"]["6"]}})[0], sheet)
    print(f"demo: Attention Probe done in {time.monotonic() - started:.1f} s", flush=True)
    return sheet
