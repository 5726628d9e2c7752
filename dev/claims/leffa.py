"""Leffa's claims, by its own templates: persons in other shirts, whose right picture is known."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from refattention_demo.world import draw, record, truth
from refattention_demo.world.record import Record
from world.config import HELD_OUT, result
from world_host import WorldHost, inputs, node_titled

from demo_host import load_workflow, new_node
from demo_leffa import TITLES, dressing, put_person

from . import several
from .reading import Reader, drawn, require
from .rows import Findings, Row, above, columns

PAPER = "Leffa"
WITH, WITHOUT = "leffa_flow", "leffa_plain"
FLAT = (
    "300 further steps each, with a hundred times the paper's weight; the loss itself fell from 8.4 to 5.8 (t = 250), "
    "but in garments of flat colours every place of the right colour satisfies it, and attention left the "
    "middle, where it was a mean of all places, for such"
)
AT = "in sides of the garment's picture"
NEAR = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)  # in those
Measured = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Case:
    """A person, and the same one in the shirt to try on."""

    person: Record
    dressed: Record


def cases(count: int) -> list[Case]:
    """Held-out persons of the flat style; every shirt to try on has a logo."""
    found = []
    for number in range(count):
        rng = np.random.default_rng(HELD_OUT + 4 * 10**6 + number)
        person = replace(record.random_record(rng), style="flat")
        shirt = record.random_shirt(rng)
        while shirt.logo == "none" or shirt.colour in (
            person.figures[0].character.body,
            person.figures[0].character.shirt.colour,
        ):
            shirt = record.random_shirt(rng)
        found.append(Case(person, record.dressed(person, shirt)))
    return found


def run(host: WorldHost, count: int) -> Findings:
    """Measures all rows on that many persons."""
    with_loss, without = measured(host, cases(count), WITH, WITHOUT)
    worn_colour = without["wanted"] - without["own"]
    old, of_logo = "chance of its colour minus that of the old one", "chance of the logo, with minus without"
    rows = [
        above(PAPER, "the person wears the garment", f"{old}, without the loss", worn_colour),
        *gained(with_loss, without, "garments of flat colours", FLAT, "as above"),
        above(
            PAPER, "with the loss logos are kept better", of_logo, with_loss["logo"] - without["logo"],
            if_not="as above",
        ),
    ]  # fmt: skip
    return Findings(PAPER, rows)


def within(distance: float) -> str:
    """The measure of how many of the shirt's pixels have an error below it."""
    return f"within {distance}"


def gained(
    with_loss: Measured, without: Measured, of: str, why_no_place: str = "", why_no_details: str = ""
) -> list[Row]:
    """What the loss on attention brings, and why not, where a row fails."""
    place, details = f"end-point error {AT}", "colour error in the shirt"
    return [
        above(
            PAPER, f"with the loss attention finds the garment's place: {of}", f"{place}, without minus with the loss",
            without["flow"] - with_loss["flow"], if_not=why_no_place,
        ),
        above(
            PAPER, f"with the loss details are kept better: {of}", f"{details}, without minus with the loss",
            without["error"] - with_loss["error"], if_not=why_no_details,
        ),
    ]  # fmt: skip


def measured(host: WorldHost, chosen: list[Case], *names: str) -> list[Measured]:
    """Of each of some trainings, on those persons."""
    require(*(result(name) for name in names))
    for name in names:
        put_model(host, name)
    fitting_room = FittingRoom(host, chosen)
    return [fitting_room.measured(f"{name}.safetensors") for name in names]


def put_model(host: WorldHost, name: str) -> None:
    """Gives a host the result of a training, under its name."""
    shutil.copyfile(result(name), host.base / "models" / "diffusion_models" / f"{name}.safetensors")


class FittingRoom:
    """Persons on a host, whom models dress."""

    def __init__(self, host: WorldHost, chosen: list[Case]) -> None:
        self._host, self._cases, self._reader = host, chosen, Reader()
        for number, case in enumerate(self._cases):
            put_pictures(host, number, case)

    def measured(self, model: str) -> Measured:
        """(cases,) of each measure, with a file of the host's diffusion models."""
        found = []
        for numbers in several.groups(len(self._cases)):
            graph = flowing(numbers, model)
            nodes = [node_titled(graph, title) for title in ("Try-on", "Garment, moved")]
            pictures = zip(*self._host.all_pictures(graph, *nodes), strict=True)
            found += [
                _of_case(self._reader, self._cases[number], *each)
                for number, each in zip(numbers, pictures, strict=True)
            ]
        return columns(found)


def put_pictures(host: WorldHost, number: int, case: Case) -> None:
    """The person with its maps, the garment, and a picture whose colours say where on a garment they are."""
    put_person(host, f"tryon_{number}", case.person)
    host.put(f"garment_tryon_{number}", draw.flat_garment(case.dressed.figures[0].character.shirt))
    ramp = (np.arange(draw.SIZE, dtype=np.float32) + 0.5) / draw.SIZE * 255
    # Red is x, green is y.
    places = np.stack([*np.meshgrid(ramp, ramp), np.zeros((draw.SIZE, draw.SIZE))], -1)
    host.put("places", places.round().astype(np.uint8))


def _of_case(reader: Reader, case: Case, painted: NDArray[np.float32], moved: NDArray[np.float32]) -> dict[str, float]:
    """Flow's error, and by how many of its places it is small; the shirt's error, chances of colours and logo."""
    shirt, wanted = truth.shirt(case.dressed), drawn(case.dressed)
    errors = np.linalg.norm(moved[..., :2] - truth.on_flat_shirt(case.dressed), axis=-1)[shirt]
    chances = reader.chances(painted[None])
    chance: Callable[[str, Record], float] = lambda name, of: float(reader.of(chances, name, of)[0])  # noqa: E731
    return {
        "flow": float(errors.mean()),
        **{within(distance): float((errors < distance).mean()) for distance in NEAR},
        "error": float(np.abs(painted - wanted)[shirt].mean()),
        "wanted": chance("shirt", case.dressed),
        "own": chance("shirt", case.person),
        "logo": chance("logo", case.dressed),
    }


def flowing(numbers: Sequence[int], model: str) -> dict[str, Any]:
    """The template that shows where attention looks, with the pictures of these cases."""
    names = [f"tryon_{number}" for number in numbers]
    graph = dressing(load_workflow("leffa_flow"), names[0], names[0], seed=numbers[0])
    for role, title in TITLES.items():
        several.load(graph, title, [f"{role}_{name}.png" for name in names])
    inputs(graph, "LeffaLoader")["model_name"] = model
    graph["places"] = new_node("LoadImage", "Places", image="places.png")
    inputs(graph, "LeffaFlow").update(reference_image=["places", 0], temperature=1.0)
    return graph
