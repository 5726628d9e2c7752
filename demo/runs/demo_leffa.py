"""The try-on part of `make demo`: persons in garments that they did not wear."""

from __future__ import annotations

import time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from world_host import WorldHost, draw, inputs

from demo_cast import BEAR, CAT, RABBIT, ROBOT, STANDING, WAVING, alone
from demo_host import demo_module, load_workflow, new_node
from demo_sheet import contact_sheet

if TYPE_CHECKING:
    from refattention_demo.world.record import Record

STEPS, CFG = 15, 1.5
# The template's pictures by their titles
TITLES = {
    "person": "Person",
    "garment": "Garment",
    "densepose": "DensePose of the person",
    "parsing": "Human parsing of the person",
}
WEARERS = {"robot": alone(ROBOT, WAVING, "beach"), "bear": alone(BEAR, STANDING, "city")}
GARMENTS = {"heart": RABBIT.shirt, "stripes": CAT.shirt}


def run(host: WorldHost, folder: Path) -> Path:
    """Runs the try-on workflow and returns the path of its sheet."""
    started = time.monotonic()
    put_pictures(host)
    garments = [(name, host.input(f"garment_{name}.png")) for name in GARMENTS]
    rows = []
    for person in WEARERS:
        worn = [(f"{person}, {name}", _dress(host, person, name, folder)) for name in GARMENTS]
        rows.append([(person, host.input(f"person_{person}.png")), *chain(*zip(garments, worn, strict=True))])
    sheet = folder / "leffa_contact_sheet.png"
    contact_sheet(rows).save(sheet)
    print(
        f"demo: try-on, {len(WEARERS) * len(GARMENTS)} pictures done in {time.monotonic() - started:.1f} s", flush=True
    )
    return sheet


def put_pictures(host: WorldHost) -> None:
    """Persons with their maps, and garments laid flat."""
    for name, shown in WEARERS.items():
        put_person(host, name, shown)
    for name, shirt in GARMENTS.items():
        host.put(f"garment_{name}", draw.flat_garment(shirt))


def put_person(host: WorldHost, name: str, shown: Record) -> None:
    """A person with its maps, as ROLE_NAME."""
    for role, pixels in demo_module("world.worn").maps(shown).items():
        host.put(f"{role}_{name}", pixels)


def dressing(workflow: dict[str, Any], person: str, garment: str, seed: int) -> dict[str, Any]:
    """A template of try-on with pictures that were put."""
    for role, title in TITLES.items():
        inputs(workflow, "LoadImage", title)["image"] = f"{role}_{garment if role == 'garment' else person}.png"
    inputs(workflow, "KSampler").update(seed=seed, steps=STEPS, cfg=CFG)
    return needed_body_map(workflow, "LeffaTryOn")


def needed_body_map(workflow: dict[str, Any], node: str) -> dict[str, Any]:
    """Makes the kind of body map that a node's model needs of the world's, which are I, U and V."""
    given = inputs(workflow, node)
    made = {"densepose": given["densepose"], "format": "as the model needs", "kind": "auto", "model": given["model"]}
    workflow["body map"] = new_node("LeffaBodyMap", "Body map", **made)
    given["densepose"] = ["body map", 0]
    return workflow


def _dress(host: WorldHost, person: str, garment: str, folder: Path) -> Path:
    workflow = dressing(load_workflow("leffa_tryon"), person, garment, seed=7)
    return host.paint(workflow, folder / f"leffa_{person}_{garment}.png")
