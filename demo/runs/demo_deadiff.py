"""The DEADiff part of `make demo`: one prompt and seed with the styles of different references."""

from __future__ import annotations

import time
from pathlib import Path

from world_host import WorldHost, inputs, small

from demo_cast import RABBIT, STANDING, alone
from demo_host import load_workflow
from demo_sheet import contact_sheet

STYLES = ("ink", "watercolor", "blueprint")
PROMPT = "a bear waving wearing a red shirt in the forest"


def run(host: WorldHost, folder: Path) -> Path:
    """Makes the pictures and returns the path of the sheet: references above, below the same prompt in their styles."""
    started = time.monotonic()
    references = {
        style: host.put_picture(f"style_{style}", alone(RABBIT, STANDING, "beach", style)) for style in STYLES
    }
    above = [("reference: " + style, host.input(file)) for style, file in references.items()]
    below = [
        (f"a bear in {style}", _generate(host, file, 1.0, folder / f"deadiff_{style}.png"))
        for style, file in references.items()
    ]
    first = next(iter(references.values()))
    plain = _generate(host, first, 0.0, folder / "deadiff_without_style.png")
    sheet = folder / "deadiff_contact_sheet.png"
    contact_sheet([above, [*below, ("without style", plain)]]).save(sheet)
    print(f"demo: DEADiff, {len(below) + 1} pictures done in {time.monotonic() - started:.1f} s", flush=True)
    return sheet


def _generate(host: WorldHost, reference: str, strength: float, target: Path) -> Path:
    workflow = small(load_workflow("deadiff"), prompt=PROMPT, seed=5)
    inputs(workflow, "LoadImage")["image"] = reference
    inputs(workflow, "DEADiffStyle").update(strength=strength, strict=strength > 0)
    return host.paint(workflow, target)
