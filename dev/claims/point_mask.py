"""P3S's first claim: points choose the right one of two look-alikes, and the negative point helps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from refattention_demo.world import record, truth
from refattention_demo.world.record import Record
from world.config import HELD_OUT
from world_host import WorldHost, node_id

from demo_host import load_workflow
from demo_point_mask import pointed

from .rows import Findings, above

PAPER = "P3S"
ENOUGH = "the encoder was trained to tell look-alikes apart: one point hardly takes the other in, two thin the mask"
# Between the middles of two who touch each other, in sides of the picture.
CLOSE = 0.36
AGAINST_ONE = "IoU with the chosen one, two points minus one"
Mask = NDArray[np.bool_]
Part = Callable[[Record, int], Mask]


def run(host: WorldHost, count: int) -> Findings:
    """Measures all rows on that many pictures of two look-alikes."""
    right, wrong, right_alone, wrong_alone = compared(host, "alike", look_alikes(count), truth.shirt)
    against = "IoU with the chosen one minus IoU with the other"
    return Findings(
        PAPER,
        [
            above(PAPER, "two points choose the right look-alike", against, right - wrong),
            above(PAPER, "the mask is the subject", "IoU with the chosen one; holds above 0.5", right, 0.5),
            above(PAPER, "the negative point helps", AGAINST_ONE, right - right_alone, if_not=ENOUGH),
            above(PAPER, "one point alone chooses it, too", against, right_alone - wrong_alone),
        ],
    )


def run_touching(host: WorldHost, count: int) -> Findings:
    """The negative point where it should matter most: look-alikes touch, and the points are on what they share."""
    shown = [side_by_side(one) for one in look_alikes(count)]
    right, wrong, right_alone, wrong_alone = compared(host, "touching", shown, face)
    where = "of look-alikes who touch, points on their faces"
    return Findings(
        PAPER,
        [
            above(PAPER, f"the negative point helps, {where}", AGAINST_ONE, right - right_alone, if_not=ENOUGH),
            above(
                PAPER,
                f"it keeps the other out, {where}",
                "IoU with the other, one point minus two",
                wrong_alone - wrong,
            ),
        ],
    )


def look_alikes(count: int) -> list[Record]:
    """That many held-out pictures."""
    return [record.look_alikes(np.random.default_rng(HELD_OUT + 2 * 10**6 + number)) for number in range(count)]


def compared(host: WorldHost, name: str, shown: list[Record], part: Part) -> NDArray[np.float64]:
    """(4, pictures): IoU with the chosen one and with the other, by two points and by one."""
    files = [host.put_picture(f"{name}_{number}", one) for number, one in enumerate(shown)]
    found = []
    for has_negative in (True, False):
        masks = [masked(host, file, one, has_negative, part) for file, one in zip(files, shown, strict=True)]
        found += [_overlaps(masks, shown, figure) for figure in range(2)]
    return np.array(found)


def side_by_side(shown: Record) -> Record:
    """The same two so near that they touch."""
    first, second = shown.figures
    return replace(shown, figures=(replace(first, x=0.5 - CLOSE / 2), replace(second, x=0.5 + CLOSE / 2)))


def face(shown: Record, figure: int) -> Mask:
    """Where a head is in front."""
    return truth.layers(shown).mask(figure, "head")


def _overlaps(masks: list[Mask], shown: list[Record], figure: int) -> NDArray[np.float64]:
    return np.array([overlap(mask, truth.subject(one, figure)) for mask, one in zip(masks, shown, strict=True)])


def masked(host: WorldHost, file: str, shown: Record, has_negative: bool, part: Part = truth.shirt) -> Mask:
    """What the template makes of a point on a part of the first figure, and perhaps one on the other's."""
    negative = inside(part(shown, 1)) if has_negative else None
    graph = pointed(load_workflow("point_mask"), file, inside(part(shown, 0)), negative)
    return host.pictures(graph, node_id(graph, "MaskPreview"))[0, ..., 0] > 0.5


def inside(mask: Mask) -> tuple[int, int]:
    """x and y of the pixel of a mask nearest to its middle."""
    places = np.argwhere(mask)
    row, column = places[np.abs(places - places.mean(0)).sum(1).argmin()]
    return int(column), int(row)


def overlap(first: Mask, second: Mask) -> float:
    """Intersection over union."""
    return float((first & second).sum() / max(1, (first | second).sum()))
