"""DEADiff's claims, by its own template: a style reference with another subject, a prompt that names no style."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from refattention_demo.world import captions, record
from refattention_demo.world.record import Record
from world.config import HELD_OUT
from world_host import WorldHost, inputs, node_id, small

from demo_host import load_workflow

from .reading import Reader
from .rows import Findings, Row, above

PAPER = "DEADiff"
UNLEARNT = "the content branch has learnt nothing yet: its tokens are the same for every picture"
NOT_TRAINED = "a second training, of all layers by reconstruction, was not made"


@dataclass(frozen=True)
class Case:
    """A style reference, and what the prompt asks for in that style."""

    reference: Record
    wanted: Record

    @property
    def prompt(self) -> str:
        """All but the style."""
        return captions.caption(self.wanted, np.random.default_rng(0), replace(captions.EVERYTHING, style=0))


def cases(count: int) -> list[Case]:
    """References in the styles by turns, another species in each."""
    found = []
    for number in range(count):
        rng = np.random.default_rng(HELD_OUT + 3 * 10**6 + number)
        reference = replace(record.random_record(rng), style=record.STYLES[number % len(record.STYLES)])
        wanted = record.another_subject(reference, rng)
        while wanted.figures[0].character.species == reference.figures[0].character.species:
            wanted = record.another_subject(reference, rng)
        found.append(Case(reference, wanted))
    return found


def run(host: WorldHost, count: int) -> Findings:
    """Measures all rows on that many references."""
    chosen, reader = cases(count), Reader()
    files = [host.put_picture(f"style_{number}", case.reference) for number, case in enumerate(chosen)]

    def measured(strength: float, **settings: Any) -> dict[str, NDArray[np.float64]]:
        pictures = np.concatenate(
            [painted(host, case, number, files[number], strength, settings) for number, case in enumerate(chosen)]
        )
        chances = reader.chances(pictures)
        of = {"style": ("style", "reference"), "species": ("species", "wanted"), "leak": ("species", "reference")}
        return {
            name: np.array([reader.of(chances, what, getattr(case, whose))[n] for n, case in enumerate(chosen)], float)
            for name, (what, whose) in of.items()
        }

    without, with_style, content = measured(0.0), measured(1.0), measured(1.0, mode="content")
    return Findings(
        PAPER,
        [
            above(
                PAPER, "the style is the reference's", "chance of its style, strength 1 minus 0",
                with_style["style"] - without["style"],
            ),
            above(
                PAPER, "the text still says what is shown",
                "chance of the prompt's species, strength 1 minus 0; holds above -0.1",
                with_style["species"] - without["species"], -0.1,
            ),
            above(
                PAPER, "the reference's content stays out",
                "chance of its species, 0 minus strength 1; holds above -0.1",
                without["leak"] - with_style["leak"], -0.1,
            ),
            above(
                PAPER, "the coarse layers are those of the content",
                "chance of its species, mode content minus mode style",
                content["leak"] - with_style["leak"], if_not=UNLEARNT,
            ),
            above(
                PAPER, "the fine layers are those of the style", "chance of its style, mode style minus mode content",
                with_style["style"] - content["style"],
            ),
            Row(PAPER, "beats one encoder for all layers, trained by reconstruction", "", None, None, NOT_TRAINED),
        ],
    )  # fmt: skip


def painted(
    host: WorldHost, case: Case, seed: int, file: str, strength: float, settings: dict[str, Any]
) -> NDArray[np.float32]:
    graph = small(load_workflow("deadiff"), case.prompt, seed)
    inputs(graph, "LoadImage")["image"] = file
    inputs(graph, "DEADiffStyle").update(strength=strength, strict=strength > 0, **settings)
    return host.pictures(graph, node_id(graph, "SaveImage"))
