"""The repair part of `make demo`: a garbled face, where it is found in a reference, repaired without and with it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw
from world_host import WorldHost, draw, inputs, node_id

from demo_cast import RABBIT, STANDING, WAVING, alone
from demo_host import demo_module, load_workflow, new_node
from demo_sheet import contact_sheet

SPOILED, REFERENCE = "spoiled_face.png", "face_reference"
LOOKS, MATCH = "where it looks, match", "match"  # a label; the id of a node
# Named is only what it is; how it looks is for the reference to tell.
PROMPT = "a rabbit, flat cartoon"
# Of the seeds 0 to 7 the reference brings the face nearer to the right one in all but 5.
SETTINGS = {
    "seed": 2, "steps": 20, "cfg": 4.0, "denoise": 1.0, "feather": 2, "working_size": draw.SIZE, "context": 3.0,
    "layers": "output.8", "margin": 0.3, "minimum_contrast": 1.0,
}  # fmt: skip
STRENGTH = 0.8
TURN, REACH = 2.6, 14  # radians in the middle of the garbled face, and how far they reach, in pixels


def run(host: WorldHost, folder: Path) -> Path:
    """Runs the workflow and returns the path of its sheet."""
    started = time.monotonic()
    _put_garbled(host)
    reference = host.put_picture(REFERENCE, alone(RABBIT, WAVING, "beach"))
    cells = [("with artifact", host.input(SPOILED)), ("reference", host.input(reference))]
    outputs = {strength: host.run(_workflow(reference, strength))["outputs"] for strength in (STRENGTH, 0.0)}
    for label, strength, node in (
        (LOOKS, STRENGTH, "8"),
        ("without reference", 0.0, "7"),
        ("repaired", STRENGTH, "7"),
    ):
        target = folder / f"align_{label.split(',')[0].replace(' ', '_')}.png"
        shutil.copyfile(host.images({"outputs": {node: outputs[strength][node]}})[0], target)
        cells.append((label, target))
    _draw_match(dict(cells)[LOOKS], host.images({"outputs": {MATCH: outputs[STRENGTH][MATCH]}})[0])
    print(f"demo: Refine by Align done in {time.monotonic() - started:.1f} s", flush=True)
    sheet = folder / "align_contact_sheet.png"
    contact_sheet([cells]).save(sheet)
    return sheet


def _workflow(reference: str, strength: float) -> dict[str, Any]:
    workflow = repairing(load_workflow("refine_by_align"), SPOILED, reference, PROMPT)
    inputs(workflow, "RefineByAlign").update(SETTINGS, strength=strength)
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
    """A rabbit whose face is twisted, masked there."""
    shown = alone(RABBIT, STANDING, "city")
    face = demo_module("world.truth").layers(shown).mask(0, "head")
    (top, left), (bottom, right) = (np.argwhere(face).min(0), np.argwhere(face).max(0))
    y, x = np.mgrid[: draw.SIZE, : draw.SIZE].astype(np.float32)
    y, x = y - (top + bottom) / 2, x - (left + right) / 2
    angle = TURN * np.exp(-(x**2 + y**2) / REACH**2)
    sine, cosine = np.sin(angle), np.cos(angle)
    from_x, from_y = x * cosine - y * sine + (left + right) / 2, x * sine + y * cosine + (top + bottom) / 2
    whole = draw.picture(shown)
    twisted = cv2.remap(whole, from_x.astype(np.float32), from_y.astype(np.float32), cv2.INTER_LINEAR)
    garbled = np.where(face[..., None], twisted, whole)
    host.put(SPOILED.removesuffix(".png"), garbled, hole=face)
