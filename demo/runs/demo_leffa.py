"""The try-on part of `make demo`: persons in garments that they did not wear."""

from __future__ import annotations

import shutil
import time
from itertools import chain
from pathlib import Path

from PIL import Image
from world_host import WorldHost, inputs

from demo_cast import BEAR, CAT, RABBIT, ROBOT, STANDING, WAVING, alone
from demo_host import demo_module, load_workflow
from demo_sheet import contact_sheet

STEPS, CFG = 15, 1.5
WEARERS = {"robot": alone(ROBOT, WAVING, "beach"), "bear": alone(BEAR, STANDING, "city")}
GARMENTS = {"heart": RABBIT.shirt, "stripes": CAT.shirt}


def run(host: WorldHost, folder: Path) -> Path:
    """Runs the try-on workflow and returns the path of its sheet."""
    started = time.monotonic()
    put_pictures(host.base / "input")
    garments = [(name, host.base / "input" / f"garment_{name}.png") for name in GARMENTS]
    rows = []
    for person in WEARERS:
        worn = [(f"{person}, {name}", _dress(host, person, name, folder)) for name in GARMENTS]
        rows.append([(person, host.base / "input" / f"person_{person}.png"), *chain(*zip(garments, worn, strict=True))])
    sheet = folder / "leffa_contact_sheet.png"
    contact_sheet(rows).save(sheet)
    print(
        f"demo: try-on, {len(WEARERS) * len(GARMENTS)} pictures done in {time.monotonic() - started:.1f} s", flush=True
    )
    return sheet


def put_pictures(folder: Path) -> None:
    """Persons with their maps, and garments laid flat."""
    draw, worn = demo_module("world.draw"), demo_module("world.worn")
    for name, shown in WEARERS.items():
        for role, pixels in worn.maps(shown).items():
            Image.fromarray(pixels).save(folder / f"{role}_{name}.png")
    for name, shirt in GARMENTS.items():
        Image.fromarray(draw.flat_garment(shirt)).save(folder / f"garment_{name}.png")


def _dress(host: WorldHost, person: str, garment: str, folder: Path) -> Path:
    workflow = load_workflow("leffa_tryon")
    files = {
        "Person": f"person_{person}",
        "Garment": f"garment_{garment}",
        "DensePose of the person": f"densepose_{person}",
    }
    files["Human parsing of the person"] = f"parsing_{person}"
    for title, name in files.items():
        inputs(workflow, "LoadImage", title)["image"] = f"{name}.png"
    # The world's body maps are of the kind that names places on the body, too; the node makes the one that is needed.
    given = inputs(workflow, "LeffaTryOn")["densepose"]
    mapped = {
        "densepose": given,
        "format": "as the model needs",
        "kind": "auto",
        "model": inputs(workflow, "LeffaTryOn")["model"],
    }
    workflow["body map"] = {"class_type": "LeffaBodyMap", "inputs": mapped}
    inputs(workflow, "LeffaTryOn")["densepose"] = ["body map", 0]
    inputs(workflow, "KSampler").update(steps=STEPS, cfg=CFG, seed=7)
    target = folder / f"leffa_{person}_{garment}.png"
    shutil.copyfile(host.images(host.run(workflow))[0], target)
    return target
