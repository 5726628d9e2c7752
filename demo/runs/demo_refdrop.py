"""The RefDrop workflow at several strengths."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from demo_host import PHOTO, load_workflow, set_inputs
from demo_sheet import contact_sheet
from host import HeadlessHost

STRENGTHS = (-0.3, 0.0, 0.3, 0.6)


def run(host: HeadlessHost, folder: Path) -> Path:
    """Runs all strengths with one seed and returns the contact sheet's path."""
    results = [(f"strength {strength:g}", generate(host, strength, folder)) for strength in STRENGTHS]
    sheet = folder / "refdrop_contact_sheet.png"
    contact_sheet([("reference", PHOTO), *results]).save(sheet)
    return sheet


def generate(host: HeadlessHost, strength: float, folder: Path) -> Path:
    """Runs the workflow once and returns where its picture was copied to."""
    started = time.monotonic()
    entry = host.run(set_inputs(load_workflow("refdrop"), "RefDropApply", strength=strength))
    target = folder / f"refdrop_strength_{strength:+.1f}.png"
    shutil.copyfile(host.images(entry)[0], target)
    print(f"demo: RefDrop, strength {strength:+.1f}, done in {time.monotonic() - started:.1f} s", flush=True)
    return target
