"""P3S's first claim: points choose the right one of two look-alikes, and the negative point helps."""

from __future__ import annotations

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
ENOUGH = "the encoder was trained to tell look-alikes apart, so that one point may be enough"
Mask = NDArray[np.bool_]


def run(host: WorldHost, count: int) -> Findings:
    """Measures all rows on that many pictures of two look-alikes."""
    shown = [record.look_alikes(np.random.default_rng(HELD_OUT + 2 * 10**6 + number)) for number in range(count)]
    files = [host.put_picture(f"alike_{number}", one) for number, one in enumerate(shown)]
    both = [masked(host, file, one, True) for file, one in zip(files, shown, strict=True)]
    alone = [masked(host, file, one, False) for file, one in zip(files, shown, strict=True)]
    right, wrong, right_alone = (_overlaps(*pair) for pair in ((both, shown, 0), (both, shown, 1), (alone, shown, 0)))
    against, than_alone = (
        "IoU with the chosen one minus IoU with the other",
        "IoU with the chosen one, against one point",
    )
    return Findings(
        PAPER,
        [
            above(PAPER, "two points choose the right look-alike", against, right - wrong),
            above(PAPER, "the mask is the subject", "IoU with the chosen one; holds above 0.5", right, 0.5),
            above(PAPER, "the negative point helps", than_alone, right - right_alone, note=ENOUGH),
            above(PAPER, "one point alone, for comparison", against, right_alone - _overlaps(alone, shown, 1)),
        ],
    )


def _overlaps(masks: list[Mask], shown: list[Record], figure: int) -> NDArray[np.float64]:
    return np.array([overlap(mask, truth.subject(one, figure)) for mask, one in zip(masks, shown, strict=True)])


def masked(host: WorldHost, file: str, shown: Record, has_negative: bool) -> Mask:
    """What the template makes of a point on the first figure's shirt, and perhaps one on the other's."""
    negative = inside(truth.shirt(shown, 1)) if has_negative else None
    graph = pointed(load_workflow("point_mask"), file, inside(truth.shirt(shown, 0)), negative)
    return host.pictures(graph, node_id(graph, "MaskPreview"))[0, ..., 0] > 0.5


def inside(mask: Mask) -> tuple[int, int]:
    """x and y of the pixel of a mask nearest to its middle."""
    places = np.argwhere(mask)
    row, column = places[np.abs(places - places.mean(0)).sum(1).argmin()]
    return int(column), int(row)


def overlap(first: Mask, second: Mask) -> float:
    """Intersection over union."""
    return float((first & second).sum() / max(1, (first | second).sum()))
