"""The DEADiff part of `make demo`: one prompt and seed with styles of different references."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from demo_host import PHOTO, load_workflow, set_inputs
from demo_sheet import contact_sheet
from host import HeadlessHost

# Fewer steps and pixels than the workflow has, for the sake of time.
SMALL: dict[str, dict[str, Any]] = {"EmptyLatentImage": {"width": 384, "height": 384}, "KSampler": {"steps": 20}}
SWATCHES = {"blue": (40, 70, 190), "red": (190, 50, 30)}


def run(host: HeadlessHost, folder: Path) -> Path:
    """Makes the pictures and returns the path of the sheet that holds them, the photograph first."""
    results = [("reference", PHOTO)]
    for label, workflow in _variants(host, folder):
        started = time.monotonic()
        target = folder / f"deadiff_{label.replace(' ', '_')}.png"
        shutil.copyfile(host.images(host.run(workflow))[0], target)
        print(f"demo: DEADiff, {label} done in {time.monotonic() - started:.1f} s", flush=True)
        results.append((label, target))
    sheet = folder / "deadiff_contact_sheet.png"
    contact_sheet(results).save(sheet)
    return sheet


def _variants(host: HeadlessHost, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    workflow = load_workflow("deadiff")
    for node, inputs in SMALL.items():
        workflow = set_inputs(workflow, node, **inputs)
    yield "without style", set_inputs(workflow, "DEADiffStyle", strict=False, strength=0.0)
    yield "style of the photo", workflow
    for name, colour in SWATCHES.items():
        swatch = folder / f"swatch_{name}.png"
        Image.new("RGB", (64, 64), colour).save(swatch)
        host.put_input(swatch)
        yield f"style of a {name} picture", set_inputs(workflow, "LoadImage", image=swatch.name)
