"""Leffa's pose transfer, by its own template: a person in another pose, whose right picture is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from refattention_demo.world import record, truth
from refattention_demo.world.record import Record
from world import data_sets
from world.config import HELD_OUT, result
from world_host import WorldHost, inputs

from demo_host import load_workflow
from demo_leffa import CFG, STEPS, needed_body_map

from . import several
from .leffa import PAPER, put_model
from .reading import Reader, drawn, require
from .rows import Findings, above

MODEL = "poses"
Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A person, and what the same one looks like in the pose to take."""

    person: Record
    posed: Record


def cases(count: int) -> list[Case]:
    """Held-out persons of the flat style; the pose to take has another name."""
    found: list[Case] = []
    rng = np.random.default_rng(HELD_OUT + 9 * 10**6)
    while len(found) < count:
        posed, person = data_sets.poses(record.random_record(rng), rng)
        if posed.figures[0].pose.name != person.figures[0].pose.name:
            found.append(Case(person, posed))
    return found


def run(host: WorldHost, count: int) -> Findings:
    """Measures all rows on that many persons."""
    require(result(MODEL))
    put_model(host, MODEL)
    chosen, reader = cases(count), Reader()
    for number, case in enumerate(chosen):
        host.put_picture(f"posing_{number}", case.person)
        host.put(f"pose_{number}", truth.densepose(case.posed))
    own, foreign = (
        np.concatenate([painted(host, n, [(each + shift) % count for each in n]) for n in several.groups(count)])
        for shift in range(2)
    )

    def chance(pictures: Pixels, name: str, shown: list[Record]) -> NDArray[np.float64]:
        return reader.of_each(reader.chances(pictures), name, shown)

    persons, posed = [case.person for case in chosen], [case.posed for case in chosen]
    looks = [(chance(each, "body", posed) + chance(each, "shirt", posed)) / 2 for each in (own, foreign)]
    taken = chance(own, "pose", posed) - chance(own, "pose", persons)
    before = [drawn(person) for person in persons]
    left = [np.array([error(*each) for each in zip(pictures, chosen, strict=True)]) for pictures in (before, own)]
    return Findings(
        PAPER,
        [
            above(
                PAPER, "pose transfer: the pose is the one that was asked for",
                "its chance minus that of the reference's pose", taken,
            ),
            above(
                PAPER, "pose transfer: the person is the reference's",
                "chance of body and shirt colour, own minus foreign reference", looks[0] - looks[1],
            ),
            above(
                PAPER, "pose transfer: the picture is nearer to the right one than the reference was",
                "colour error where the person is in either, of the reference minus of the picture", left[0] - left[1],
            ),
        ],
    )  # fmt: skip


def painted(host: WorldHost, poses: Sequence[int], persons: Sequence[int]) -> Pixels:
    """(B, H, W, 3): persons in poses, by their numbers."""
    graph = load_workflow("leffa_pose_transfer")
    inputs(graph, "LeffaLoader")["model_name"] = f"{MODEL}.safetensors"
    several.load(graph, "Person", [f"posing_{person}.png" for person in persons])
    several.load(graph, "DensePose of the pose (U, V, I)", [f"pose_{pose}.png" for pose in poses])
    graph = needed_body_map(graph, "LeffaPoseTransfer")
    inputs(graph, "KSampler").update(seed=poses[0], steps=STEPS, cfg=CFG)
    return host.saved(graph)


def error(picture: Pixels, case: Case) -> float:
    """How far a picture is from the right one, in colours from 0 to 1, where the person is or was."""
    return float(np.abs(picture - drawn(case.posed))[truth.subject(case.posed) | truth.subject(case.person)].mean())
