"""RefDrop further: two references blend, concatenation is an interpolation, a block left out frees the pose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from refattention_demo.world.record import Record
from world_host import WorldHost, inputs, small

from demo_host import load_workflow, new_node

from .reading import FACE_BOX, SHIRT_BOX, Reader, colour, drawn
from .refdrop import IDENTITY, PAPER, Case, cases, workflow
from .rows import Findings, above, below

STRENGTH = 0.4
AT = f"c = {STRENGTH}"
# Poses are told apart less surely than colours.
POSE_CASES = 2
NOTHING_TO_FREE = (
    "there is nothing to free: with all blocks, too, the reference's pose is but 0.014 [-0.037, 0.069] likelier than "
    "without guidance; the block changes pictures by 0.15 steps of 255 where guidance changes them by 38"
)
Picture = NDArray[np.float32]


class Painter:
    """Paints held-out cases by the published template."""

    def __init__(self, host: WorldHost, count: int) -> None:
        self.host, self.cases = host, cases(count)
        self.files = [host.put_picture(f"refdrop_{number}", case.reference) for number, case in enumerate(self.cases)]

    def painted(self, strength: float = STRENGTH, shift: int = 0, **settings: Any) -> list[Picture]:
        """All cases, each with its own reference, or with that of one further on."""
        return [self.picture(n, strength, shift, **settings) for n in range(len(self.cases))]

    def picture(self, number: int, strength: float = STRENGTH, shift: int = 0, **settings: Any) -> Picture:
        """One of them."""
        return self.host.saved(self._graph(number, strength, shift, settings))[0]

    def by_query(self) -> list[Picture]:
        """By concatenation, computed as `rank_one` computes it."""
        graphs = (self._graph(n, 1.0, 0, {"mode": "concat"}) for n in range(len(self.cases)))
        return [self.host.saved(_interpolated(graph))[0] for graph in graphs]

    def blended(self) -> list[Picture]:
        """By its own reference and that of the next case, with the template for two."""
        found = []
        for number, case in enumerate(self.cases):
            graph = small(load_workflow("refdrop_blend"), case.prompt, number)
            for title, at in {"First subject": number, "Second subject": self._next(number)}.items():
                inputs(graph, "LoadImage", title)["image"] = self.files[at]
                apply = inputs(graph, "RefDropApply", title)
                apply["strength"] = STRENGTH
                graph[apply["reference_positive"][0]]["inputs"]["text"] = self.cases[at].reference_prompt
            found.append(self.host.saved(graph)[0])
        return found

    def pairs(self) -> list[tuple[Record, Record]]:
        """The references of each case and of the next one."""
        return [(case.reference, self.cases[self._next(n)].reference) for n, case in enumerate(self.cases)]

    def _graph(self, number: int, strength: float, shift: int, settings: dict[str, Any]) -> dict[str, Any]:
        at = self._next(number, shift)
        case = replace(self.cases[number], reference=self.cases[at].reference)
        return workflow(case, number, strength, self.files[at], **settings)

    def _next(self, number: int, shift: int = 1) -> int:
        return (number + shift) % len(self.cases)


def run_blending(host: WorldHost, count: int) -> Findings:
    """Two references in one picture, against each alone."""
    painter, reader = Painter(host, count), Reader()
    kinds = painter.painted(), painter.painted(shift=1), painter.blended()
    pairs = painter.pairs()
    near = np.array([[_nearer(picture, pair) for picture, pair in zip(kind, pairs, strict=True)] for kind in kinds])
    seen = np.array(
        [[_weaker(reader, picture, pair) for picture, pair in zip(kind, pairs, strict=True)] for kind in kinds]
    )  # (kinds, cases), as is `near`
    rows = [
        above(
            PAPER,
            "two references blend: colours lie between",
            f"how much nearer colours are to one reference than to the other, each alone minus both, {AT} each",
            np.abs(near[:2]).mean(0) - np.abs(near[2]),
        ),
        above(
            PAPER,
            "two references blend: both are seen",
            f"{IDENTITY}, the smaller of both references', both minus each alone, {AT} each",
            seen[2] - seen[:2].mean(0),
        ),
    ]
    return Findings(PAPER, rows)


def run_rank_one(host: WorldHost, count: int) -> Findings:
    """Concatenation by the node's own mode, by a coefficient for each query, and one coefficient for all."""
    painter = Painter(host, count)
    concatenated = np.stack(painter.painted(1.0, mode="concat"))
    by_query, constant = (
        255 * np.abs(np.stack(pictures) - concatenated).mean((1, 2, 3))
        for pictures in (painter.by_query(), painter.painted())
    )
    difference = "mean difference to the picture by concatenation, in steps of 255"
    rows = [
        below(
            PAPER,
            "concatenation is an interpolation with a coefficient for each query",
            f"{difference}; attention computed so; holds below 0.1",
            by_query,
            0.1,
        ),
        above(PAPER, "one for all is another method", f"{difference}; {AT}; holds above 0.1", constant, 0.1),
    ]
    return Findings(PAPER, rows)


def run_layout(host: WorldHost, count: int) -> Findings:
    """What becomes of the prompt's pose with guidance, and with guidance in all blocks."""
    painter, reader = Painter(host, POSE_CASES * count), Reader()

    def chances(numbers: Sequence[int], **settings: Any) -> NDArray[np.float64]:
        """(2, cases): of the prompt's pose and of the reference's."""
        return np.array([_pose(reader, painter.picture(n, **settings), painter.cases[n]) for n in numbers]).T

    every = range(len(painter.cases))
    other = [n for n in every if _pose_name(painter.cases[n].wanted) != _pose_name(painter.cases[n].reference)]
    plain, guided = chances(every, strength=0.0), chances(every)
    freed, everywhere = guided[:, other], chances(other, blocks="all")
    rows = [
        above(
            PAPER,
            "the pose follows the prompt",
            f"chance of the prompt's pose, {AT} minus 0; holds above -0.1",
            guided[0] - plain[0],
            -0.1,
        ),
        above(
            PAPER,
            "leaving out the first output block frees the pose",
            f"chance of the prompt's pose, without the block minus all blocks, {AT}, where the reference has another",
            freed[0] - everywhere[0],
            if_not=NOTHING_TO_FREE,
        ),
        above(
            PAPER,
            "and keeps that of the reference out",
            "chance of the reference's pose, all blocks minus without the block, in the same",
            everywhere[1] - freed[1],
            if_not="as above",
        ),
    ]
    return Findings(PAPER, rows)


def _pose_name(shown: Record) -> str:
    return shown.figures[0].pose.name


def _pose(reader: Reader, picture: Picture, case: Case) -> list[float]:
    chances = reader.chances(picture[None])
    return [float(reader.of(chances, "pose", shown)[0]) for shown in (case.wanted, case.reference)]


def _interpolated(graph: dict[str, Any]) -> dict[str, Any]:
    """Has the node of `rank_one` compute the attention."""
    apply = inputs(graph, "RefDropApply")
    graph["interpolated"] = new_node("ClaimsInterpolated", "Interpolated", model=apply["model"])
    apply["model"] = ["interpolated", 0]
    return graph


def _nearer(picture: Picture, pair: tuple[Record, Record]) -> float:
    """Colour distance to the second reference minus that to the first, of shirt and face together."""
    shown = [drawn(reference) for reference in pair]
    first, second, own = (
        np.concatenate([colour(each, box) for box in (SHIRT_BOX, FACE_BOX)]) for each in (*shown, picture)
    )
    return float(np.linalg.norm(own - second) - np.linalg.norm(own - first))


def _weaker(reader: Reader, picture: Picture, pair: tuple[Record, Record]) -> float:
    """The smaller of both references' mean chance of body and shirt colour."""
    chances = reader.chances(picture[None])
    return min(float(reader.of(chances, "body", one)[0] + reader.of(chances, "shirt", one)[0]) / 2 for one in pair)
