"""Held-out pictures whose logos are garbled, for what measures Refine-by-Align."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from refattention_demo.world import captions, record, truth
from refattention_demo.world.record import Record

from .config import HELD_OUT

SMALLEST = 300  # pixels of a logo, in both views


@dataclass(frozen=True)
class SpoiledLogo:
    """A picture whose logo is garbled, and another view of the same character."""

    whole: Record
    spoiled: Record
    reference: Record

    @property
    def prompt(self) -> str:
        """Names who it is, but neither the logo nor its colours."""
        return captions.caption(self.whole, np.random.default_rng(0), replace(captions.EVERYTHING, shirt=0))


def held_out(first: int, count: int) -> list[SpoiledLogo]:
    """Pictures of the flat style whose logos are seen in both views, from a held-out number on."""
    found: list[SpoiledLogo] = []
    number = HELD_OUT + first
    while len(found) < count:
        rng = np.random.default_rng(number)
        number += 1
        whole = replace(record.random_record(rng), style="flat")
        if whole.figures[0].character.shirt.logo == "none":
            continue
        case = SpoiledLogo(whole, record.spoiled(whole, rng), record.another_view(whole, rng))
        if truth.logo(whole).sum() > SMALLEST and truth.logo(case.reference).sum() > SMALLEST:
            found.append(case)
    return found
