"""Leffa's claims about its loss, in shirts of which every place looks different: there only the right one fits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from refattention_demo.world import record
from world import data_sets
from world.config import HELD_OUT
from world_host import WorldHost

from .leffa import AT, NEAR, PAPER, Case, gained, measured, within
from .rows import Curve, Findings, Plot, above, estimate

WITH, WITHOUT = "quilts_flow", "quilts_plain"
QUILTS = "garments of which every place looks different"
WEIGHT = (
    "0.066 against 0.059 in 8 cases; with a hundred times the paper's weight the loss is three quarters of what 300 "
    "steps minimise, and the error of the noise stays 9 % higher than without it, on the same pictures and noises"
)
CHOICES = {
    "quilts_tau": ("a temperature of 2 in the loss is better than 1", "1"),
    "quilts_timesteps": ("the loss on timesteps below 500 is better than on all", "all"),
    "quilts_coarse": ("the loss on layers of 1/32 and finer is better than on all", "all"),
}


def cases(count: int) -> list[Case]:
    """Held-out persons of the flat style, and such shirts."""
    found = []
    for number in range(count):
        rng = np.random.default_rng(HELD_OUT + 8 * 10**6 + number)
        person = replace(record.random_record(rng), style="flat")
        found.append(Case(person, record.dressed(person, data_sets.quilt(rng))))
    return found


def run(host: WorldHost, count: int) -> Findings:
    """Measures what the loss brings, on that many persons."""
    with_loss, without = measured(host, cases(count), WITH, WITHOUT)
    curves = [
        Curve(label, list(NEAR), [estimate(found[within(distance)]) for distance in NEAR])
        for label, found in (("with the loss", with_loss), ("without", without))
    ]
    plot = Plot(f"end-point error below, {AT}", "share of the shirt's pixels", curves)
    return Findings(PAPER, gained(with_loss, without, QUILTS, why_no_details=WEIGHT), [plot])


def run_choices(host: WorldHost, count: int) -> Findings:
    """What the paper chose for the loss, each against a training without that choice."""
    paper, *others = measured(host, cases(count), WITH, *CHOICES)
    rows = [
        above(
            PAPER, claim, f"end-point error {AT}, {of} minus the paper's; {QUILTS}", other["flow"] - paper["flow"],
            if_not="the two trainings came out alike",
        )
        for (claim, of), other in zip(CHOICES.values(), others, strict=True)
    ]  # fmt: skip
    return Findings(PAPER, rows)
