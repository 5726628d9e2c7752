"""The RefDrop workflow at several strengths: what a prompt does not say comes from the reference."""

from __future__ import annotations

import time
from pathlib import Path

from world_host import WorldHost, inputs, small

from demo_cast import CAT, alone
from demo_host import load_workflow
from demo_sheet import contact_sheet

STRENGTHS = (-0.3, 0.0, 0.3, 0.6)
REFERENCE = "an orange cat wearing a blue striped shirt in a room, flat cartoon"
PROMPTS = {"beach": "a cat waving on the beach, flat cartoon", "forest": "a cat cheering in the forest, flat cartoon"}
SEEDS = {"beach": 7, "forest": 4}


def run(host: WorldHost, folder: Path) -> Path:
    """Runs all strengths with one seed for each prompt and returns the contact sheet's path."""
    started = time.monotonic()
    reference = host.put_picture("refdrop_reference", alone(CAT))
    shown = ("reference", host.input(reference))
    rows = [
        [shown, *((f"{name}, strength {c:g}", _generate(host, reference, name, c, folder)) for c in STRENGTHS)]
        for name in PROMPTS
    ]
    sheet = folder / "refdrop_contact_sheet.png"
    contact_sheet(rows).save(sheet)
    print(
        f"demo: RefDrop, {len(PROMPTS) * len(STRENGTHS)} pictures done in {time.monotonic() - started:.1f} s",
        flush=True,
    )
    return sheet


def _generate(host: WorldHost, reference: str, name: str, strength: float, folder: Path) -> Path:
    """Runs the workflow once and returns where its picture was copied to."""
    workflow = small(load_workflow("refdrop"), prompt=PROMPTS[name], seed=SEEDS[name])
    inputs(workflow, "LoadImage")["image"] = reference
    inputs(workflow, "CLIPTextEncode", "Prompt of the reference")["text"] = REFERENCE
    inputs(workflow, "RefDropApply")["strength"] = strength
    return host.paint(workflow, folder / f"refdrop_{name}_{strength:+.1f}.png")
