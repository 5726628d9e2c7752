"""P3S's claims beyond the points: which of two look-alikes comes into the new picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from refattention_demo.world import captions, record, truth
from refattention_demo.world.record import Record
from world.config import HELD_OUT
from world_host import WorldHost, inputs, small

from demo_host import load_workflow
from demo_point_mask import pointed

from .point_mask import PAPER, inside
from .reading import SHIRT_BOX, colour, drawn
from .rows import Curve, Findings, Plot, above, estimate

STRENGTHS = (0.0, 0.5, 1.0)
LATE = "it acts late: strength 0.25, 0.5, 0.75 and 1 bring 0.4, 2.0, 6.4 [1.8, 11.3] and 23.6; with 0.5, 21 of 32 cases"


def cases(count: int) -> list[Record]:
    """Held-out pairs of look-alikes of the flat style."""
    numbers = range(count)
    pairs = (record.look_alikes(np.random.default_rng(HELD_OUT + 6 * 10**6 + number)) for number in numbers)
    return [replace(shown, style="flat") for shown in pairs]


def run(host: WorldHost, count: int) -> Findings:
    """Measures all rows on that many pairs."""
    chosen = cases(count)
    files = [host.put_picture(f"p3s_{number}", shown) for number, shown in enumerate(chosen)]
    found = np.array(
        [[nearer(host, shown, files[n], n, strength) for strength in STRENGTHS] for n, shown in enumerate(chosen)]
    )
    rows = [
        above(
            PAPER, "without training: the subject that was pointed at is painted, not the other",
            "how much nearer the shirt's colour is to the one than to the other, strength 1 minus 0",
            found[:, -1] - found[:, 0],
        ),
        above(
            PAPER, "half of the strength acts already", "the same, strength 0.5 minus 0", found[:, 1] - found[:, 0],
            if_not=LATE,
        ),
    ]  # fmt: skip
    curve = Curve("training-free", list(STRENGTHS), [estimate(values) for values in found.T])
    return Findings(PAPER, rows, [Plot("strength", "nearer to the subject", [curve])])


def nearer(host: WorldHost, shown: Record, file: str, seed: int, strength: float) -> float:
    """Colour distance to the other's shirt minus that to the subject's."""
    wanted = replace(shown, figures=shown.figures[:1], scene="beach")
    named = replace(captions.EVERYTHING, shirt=0, body=0, eyes=0)
    graph = small(load_workflow("p3s"), captions.caption(wanted, np.random.default_rng(0), named), seed)
    points = (inside(truth.shirt(shown, figure)) for figure in range(2))
    graph = pointed(graph, file, *points, radius=2)
    inputs(graph, "P3SInject")["strength"] = strength
    painted = colour(host.saved(graph)[0], SHIRT_BOX)
    subject, other = (shirt_colour(shown, figure) for figure in range(2))
    return float(np.linalg.norm(painted - other) - np.linalg.norm(painted - subject))


def shirt_colour(shown: Record, figure: int) -> NDArray[np.float32]:
    """The colour of a figure's shirt, L, a and b."""
    alone = record.Record((record.Figure(shown.figures[figure].character, STANDING),))
    return colour(drawn(alone), SHIRT_BOX)


STANDING = record.Pose("standing", *record.ARMS["standing"])
