"""Refine-by-Align's claims, by its own templates: a garbled logo, and the same shirt in another picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from refattention_demo.world import draw, record, truth
from refattention_demo.world.record import Record
from world.spoiled_logos import SpoiledLogo, held_out
from world_host import WorldHost, inputs, node_id

from demo_align import repairing
from demo_host import load_workflow, new_node

from .point_mask import overlap
from .reading import Reader, drawn
from .rows import Curve, Findings, Plot, above, columns, estimate

PAPER = "Refine-by-Align"
CLOSE = (
    "the closer the reference is cut to the part, and so the larger it shows it, the worse: with a margin of 0.1 and "
    "not 1.0 the logo's own pixels were 0.066 +- 0.036 further off, in 16 of the cases"
)
LITTLE, MUCH = (61, 161, 261), (461, 661, 861)
TIMESTEPS = (*LITTLE, *MUCH)
LAYERS = ("output.5", "output.8", "output.11")
BEST = 261, "output.8"
STEPS, GUIDANCE, STRENGTH = 15, 4.0, 0.6
MAP = "map"  # the id of a node
PAINTING = {
    "working_size": draw.SIZE, "context": 3.0, "steps": STEPS, "cfg": GUIDANCE, "denoise": 1.0, "feather": 0,
}  # fmt: skip


def cases(count: int) -> list[SpoiledLogo]:
    """Others than those of the calibration."""
    return held_out(5 * 10**6, count)


def run(host: WorldHost, count: int) -> Findings:
    """Measures all rows on that many pictures."""
    chosen = cases(count)
    for number, case in enumerate(chosen):
        put_pictures(host, number, case)
    by_place = {
        (step, layer): np.array([found(host, case, number, step, layer) for number, case in enumerate(chosen)])
        for step, layer in [
            *((step, BEST[1]) for step in TIMESTEPS),
            *((BEST[0], layer) for layer in LAYERS if layer != BEST[1]),
        ]
    }
    reader = Reader()
    repaired, alone, by_whole = (
        of_cases(host, chosen, reader, graph)
        for graph in (partial(by_part, strength=STRENGTH), partial(by_part, strength=0.0), by_all)
    )
    by_step = [by_place[step, BEST[1]] for step in TIMESTEPS]
    less, more = (np.mean(each, axis=0) for each in (by_step[: len(LITTLE)], by_step[len(LITTLE) :]))
    others = np.mean([by_place[BEST[0], layer] for layer in LAYERS if layer != BEST[1]], axis=0)
    curve = Curve(BEST[1], list(TIMESTEPS), [estimate(values) for values in by_step])
    of_map, of_repair = "IoU of the map with the logo in the reference", "colour error in the logo's square"
    against = "by the whole minus by the part"
    rows = [
        above(PAPER, "attention finds the matching part", f"{of_map}; holds above 0.2", by_place[BEST], 0.2),
        above(
            PAPER, "the timestep matters: much noise aligns worse",
            f"IoU, the mean of t = {_listed(LITTLE)} minus that of {_listed(MUCH)}", less - more,
        ),
        above(
            PAPER, "there is a best layer", f"IoU of {BEST[1]} minus the mean of the others", by_place[BEST] - others
        ),
        above(
            PAPER, "a reference repairs better than none", f"{of_repair}, strength 0 minus {STRENGTH}",
            alone["error"] - repaired["error"],
        ),
        above(
            PAPER, "the matching part repairs better than the whole reference", f"{of_repair}, {against}",
            by_whole["error"] - repaired["error"], if_not=CLOSE,
        ),
        above(
            PAPER, "the same, of the logo without the shirt around it", f"colour error in its own pixels, {against}",
            by_whole["drawn"] - repaired["drawn"], if_not="as above",
        ),
        above(
            PAPER, "by the matching part, logos are read more often than by the whole reference",
            "chance of the right logo, by the part minus by the whole", repaired["logo"] - by_whole["logo"],
            if_not="as above",
        ),
    ]  # fmt: skip
    return Findings(PAPER, rows, [Plot("t", "IoU", [curve])])


def _listed(timesteps: tuple[int, ...]) -> str:
    return ", ".join(map(str, timesteps))


def put_pictures(host: WorldHost, number: int, case: SpoiledLogo) -> None:
    """The spoiled picture, masked at its logo, and the reference."""
    host.put(f"spoiled_{number}", draw.picture(case.spoiled), hole=truth.logo(case.whole))
    host.put_picture(f"whole_{number}", case.reference)


def found(host: WorldHost, case: SpoiledLogo, number: int, timestep: int, layer: str) -> float:
    """How much of the map lies on the logo."""
    graph = filled("refine_two_steps", case, number)
    for unused in [name for name, node in graph.items() if node["class_type"] in ("RefineRegion", "SaveImage")]:
        del graph[unused]
    inputs(graph, "RefineAlign").update(
        timesteps=str(timestep), layers=layer, working_size=draw.SIZE, context=3.0, minimum_contrast=0.0
    )
    _preview(graph, node_id(graph, "RefineAlign"), 2)
    return _on_logo(host.pictures(graph, MAP), case)


def by_part(
    case: SpoiledLogo, number: int, strength: float, template: str = "refine_by_align", **settings: Any
) -> dict[str, Any]:
    """The template of the whole method, with a preview of what it finds."""
    graph = filled(template, case, number)
    where = {"timesteps": str(BEST[0]), "layers": BEST[1], "margin": 0.6, "minimum_contrast": 0.0}
    inputs(graph, "RefineByAlign").update({**PAINTING, **where, **settings}, strength=strength, seed=number)
    _preview(graph, node_id(graph, "RefineByAlign"), 3)
    return graph


def by_all(case: SpoiledLogo, number: int) -> dict[str, Any]:
    """The same with all of the reference in view."""
    graph = filled("refine_two_steps", case, number)
    region, align = inputs(graph, "RefineRegion"), node_id(graph, "RefineAlign")
    region.update(PAINTING, strength=STRENGTH, seed=number, reference_image=graph[align]["inputs"]["reference_image"])
    for unused in [name for name, node in graph.items() if node["class_type"] in ("RefineAlign", "PreviewImage")]:
        del graph[unused]
    return graph


def of_cases(
    host: WorldHost, chosen: list[SpoiledLogo], reader: Reader, graph: Callable[[SpoiledLogo, int], dict[str, Any]]
) -> dict[str, NDArray[np.float64]]:
    """(cases,) of each measure, by a workflow made of each case and its number."""
    return columns([measured(host, graph(case, number), case, reader) for number, case in enumerate(chosen)])


def measured(host: WorldHost, graph: dict[str, Any], case: SpoiledLogo, reader: Reader) -> dict[str, float]:
    """What a workflow's picture is like, see `quality`; and how much of its map lies on the logo, if it has one."""
    maps = [MAP] if MAP in graph else []
    painted, *found = host.all_pictures(graph, node_id(graph, "SaveImage"), *maps)
    measures = quality(painted[0], case, reader)
    return {**measures, "iou": _on_logo(found[0], case)} if found else measures


def _preview(graph: dict[str, Any], node: str, output: int) -> None:
    graph[MAP] = new_node("MaskPreview", MAP, mask=[node, output])


def _on_logo(shown: NDArray[np.float32], case: SpoiledLogo) -> float:
    return overlap(shown[0, ..., 0] > 0.5, truth.logo(case.reference))


def quality(painted: NDArray[np.float32], case: SpoiledLogo, reader: Reader) -> dict[str, float]:
    """How far a picture is from the right one, in colours from 0 to 1, in the logo's square and in the logo itself.

    And the chance of the right logo.
    """
    right, bare = (drawn(each) for each in (case.whole, without_logo(case.whole)))
    square, left = truth.logo(case.whole), np.abs(painted - right).mean(-1)
    return {
        "error": float(left[square].mean()),
        "drawn": float(left[square & (right != bare).any(-1)].mean()),
        "logo": float(reader.of(reader.chances(painted[None]), "logo", case.whole)[0]),
    }


def without_logo(shown: Record) -> Record:
    """The same picture without the logo."""
    return record.dressed(shown, replace(shown.figures[0].character.shirt, logo="none"))


def filled(name: str, case: SpoiledLogo, number: int) -> dict[str, Any]:
    """A template with the pictures and the prompt of a case."""
    return repairing(load_workflow(name), f"spoiled_{number}.png", f"whole_{number}.png", case.prompt)
