"""The repair part of `make demo`: a garbled shirt, where it is found in a reference, repaired without and with it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw
from world_host import WorldHost, draw, inputs, node_id

from demo_cast import BEAR, STANDING, WAVING, alone
from demo_host import demo_module, load_workflow, new_node
from demo_sheet import contact_sheet

SPOILED, REFERENCE = "spoiled_shirt.png", "shirt_reference"
LOOKS, MATCH = "where it looks, match", "match"  # a label; the id of a node
# Named is only what it is; how it looks is for the reference to tell.
PROMPT = "a bear, flat cartoon"
# Of the seeds 0 to 9 two make the shirt purple without the reference, all of them with it.
SETTINGS = {
    "seed": 1, "steps": 20, "denoise": 1.0, "feather": 2, "working_size": draw.SIZE, "context": 3.0,
    "minimum_contrast": 1.0,
}  # fmt: skip
FREE = {"cfg": 4.0, "layers": "output.8", "margin": 0.3, "strength": 0.8}
# What is not given here comes with the adapter.
TRAINED = {"cfg": 2.0, "margin": 0.15, "strength": 1.0}
TURN, REACH = 3.0, 20  # radians in the middle of the garbled shirt, and how far they reach, in pixels


def run(host: WorldHost, folder: Path) -> Path:
    """Runs both workflows and returns the path of their sheet."""
    started = time.monotonic()
    _put_garbled(host)
    reference = host.put_picture(REFERENCE, alone(BEAR, WAVING, "beach"))
    cells = [("with artifact", host.input(SPOILED)), ("reference", host.input(reference))]
    without, free, trained = (
        host.run(_workflow(reference, template, settings))["outputs"]
        for template, settings in (
            ("refine_by_align", {**FREE, "strength": 0.0}),
            ("refine_by_align", FREE),
            ("refine_trained", TRAINED),
        )
    )
    for label, outputs, node in (
        (LOOKS, free, "8"),
        ("without reference", without, "7"),
        ("repaired, training-free", free, "7"),
        ("repaired, trained", trained, "7"),
    ):
        target = folder / f"align_{label.replace(', ', '_').replace(' ', '_')}.png"
        shutil.copyfile(host.images({"outputs": {node: outputs[node]}})[0], target)
        cells.append((label, target))
    _draw_match(dict(cells)[LOOKS], host.images({"outputs": {MATCH: free[MATCH]}})[0])
    print(f"demo: Refine by Align done in {time.monotonic() - started:.1f} s", flush=True)
    sheet = folder / "align_contact_sheet.png"
    contact_sheet([cells]).save(sheet)
    return sheet


def _workflow(reference: str, template: str, settings: dict[str, Any]) -> dict[str, Any]:
    workflow = repairing(load_workflow(template), SPOILED, reference, PROMPT)
    inputs(workflow, "RefineByAlign").update(SETTINGS | settings)
    found = [node_id(workflow, "RefineByAlign"), 3]
    workflow[MATCH] = new_node("MaskPreview", "The place found", mask=found)
    return workflow


def _draw_match(heat_map: Path, mask: Path) -> None:
    """A frame around the place that was found, on the heat map."""
    with Image.open(mask) as found, Image.open(heat_map) as shown:
        canvas, box = shown.convert("RGB"), found.convert("L").getbbox()
    if box:
        ImageDraw.Draw(canvas).rectangle(box, outline="white", width=2)
    canvas.save(heat_map)


def repairing(workflow: dict[str, Any], spoiled: str, reference: str, prompt: str) -> dict[str, Any]:
    """A template of Refine by Align with pictures and a prompt of the world."""
    inputs(workflow, "LoadImage", "Picture with the artifact, masked")["image"] = spoiled
    inputs(workflow, "LoadImage", "Reference without it")["image"] = reference
    inputs(workflow, "CLIPTextEncode", "What the area shows")["text"] = prompt
    inputs(workflow, "CLIPTextEncode", "What it does not show")["text"] = ""
    return workflow


def _put_garbled(host: WorldHost) -> None:
    """A bear whose shirt is twisted, masked there."""
    shown = alone(BEAR, STANDING, "city")
    shirt = demo_module("world.truth").shirt(shown, 0)
    (top, left), (bottom, right) = (np.argwhere(shirt).min(0), np.argwhere(shirt).max(0))
    y, x = np.mgrid[: draw.SIZE, : draw.SIZE].astype(np.float32)
    y, x = y - (top + bottom) / 2, x - (left + right) / 2
    angle = TURN * np.exp(-(x**2 + y**2) / REACH**2)
    sine, cosine = np.sin(angle), np.cos(angle)
    from_x, from_y = x * cosine - y * sine + (left + right) / 2, x * sine + y * cosine + (top + bottom) / 2
    whole = draw.picture(shown)
    twisted = cv2.remap(whole, from_x.astype(np.float32), from_y.astype(np.float32), cv2.INTER_LINEAR)
    host.put(SPOILED.removesuffix(".png"), np.where(shirt[..., None], twisted, whole), hole=shirt)
