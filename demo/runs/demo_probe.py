"""The probe's part of `make demo`: what the layers of the demo model see from one place of a photograph."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from demo_host import load_workflow
from host import HeadlessHost


def run(host: HeadlessHost, folder: Path) -> Path:
    """Runs the workflow and returns the path of its sheet."""
    started = time.monotonic()
    entry = host.run(load_workflow("attention_probe"))
    sheet = folder / "probe_contact_sheet.png"
    shutil.copyfile(host.images({"outputs": {"6": entry["outputs"]["6"]}})[0], sheet)
    print(f"demo: Attention Probe done in {time.monotonic() - started:.1f} s", flush=True)
    return sheet
