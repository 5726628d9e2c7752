"""DEADiff's claims, by its own template: a style reference with another subject, a prompt that names no style."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from refattention_demo.world import captions, record
from refattention_demo.world.record import Record
from world.config import HELD_OUT
from world_host import WorldHost, inputs, small

from demo_host import load_workflow, new_node

from .reading import Reader
from .rows import Findings, above

PAPER = "DEADiff"
LOOKS = "chance of species, body and shirt colour"
BOTH = "style & content"
UNHEARD = (
    "this small base does not listen there: whatever its coarse layers are told, its loss is the same within 0.002 %, "
    "so the content branch cannot learn"
)
UNSAID = "prompts of the setting alone"
Measures = dict[str, NDArray[np.float64]]  # (cases,) each


@dataclass(frozen=True)
class Case:
    """A style reference, and what the prompt asks for in that style."""

    reference: Record
    wanted: Record

    def prompt(self, names_subject: bool = True) -> str:
        """All but the style; or the setting alone, in the flat style."""
        if not names_subject:
            return captions.setting(replace(self.wanted, style="flat"))
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


class Painter:
    """Paints held-out cases by the published template, and reads what they show.

    Args:
        file_name: of DEADiff's weights, in the host's models; empty: the template's.
    """

    def __init__(self, host: WorldHost, count: int, file_name: str = "") -> None:
        self.host, self.cases, self.reader, self._file_name = host, cases(count), Reader(), file_name
        self._files = [host.put_picture(f"style_{number}", case.reference) for number, case in enumerate(self.cases)]

    def measured(self, strength: float, names_subject: bool = True, is_two: bool = False, **settings: Any) -> Measures:
        """Chances of the reference's style, species and looks, of the prompt's species, and of the next case's looks.

        Args:
            is_two: the next case's reference is connected, too, for its content.
        """
        chances = self.reader.chances(
            np.concatenate(
                [self._painted(number, strength, names_subject, is_two, settings) for number in range(len(self.cases))]
            )
        )

        def of(name: str, records: list[Record]) -> NDArray[np.float64]:
            return self.reader.of_each(chances, name, records)

        def looks(records: list[Record]) -> NDArray[np.float64]:
            return np.mean([of(name, records) for name in ("species", "body", "shirt")], axis=0, dtype=float)

        references = [case.reference for case in self.cases]
        return {
            "style": of("style", references),
            "species": of("species", [case.wanted for case in self.cases]),
            "leak": of("species", references),
            "looks": looks(references),
            "next": looks([*references[1:], references[0]]),
        }

    def _painted(
        self, number: int, strength: float, names_subject: bool, is_two: bool, settings: dict[str, Any]
    ) -> NDArray[np.float32]:
        graph = small(load_workflow("deadiff"), self.cases[number].prompt(names_subject), number)
        inputs(graph, "LoadImage")["image"] = self._files[number]
        inputs(graph, "DEADiffStyle").update(strength=strength, strict=strength > 0, **settings)
        if self._file_name:
            inputs(graph, "DEADiffLoader")["deadiff_name"] = self._file_name
        if is_two:
            file = self._files[(number + 1) % len(self._files)]
            graph["content"] = new_node("LoadImage", "Content", image=file)
            inputs(graph, "DEADiffStyle")["content_image"] = ["content", 0]
        return self.host.saved(graph)


def run(host: WorldHost, count: int) -> Findings:
    """Measures all rows on that many references."""
    painter = Painter(host, count)
    without, styled, content = (
        painter.measured(0.0), painter.measured(1.0), painter.measured(1.0, mode="content")
    )  # fmt: skip
    style_alone, content_alone, both = (
        painter.measured(1.0, names_subject=False, is_two=mode == BOTH, mode=mode)
        for mode in ("style", "content", BOTH)
    )
    return Findings(
        PAPER,
        [
            above(
                PAPER, "the style is the reference's", "chance of its style, strength 1 minus 0",
                styled["style"] - without["style"],
            ),
            above(
                PAPER, "the text still says what is shown",
                "chance of the prompt's species, strength 1 minus 0; holds above -0.1",
                styled["species"] - without["species"], -0.1,
            ),
            above(
                PAPER, "the reference's content stays out",
                "chance of its species, 0 minus strength 1; holds above -0.1",
                without["leak"] - styled["leak"], -0.1,
            ),
            above(
                PAPER, "the coarse layers are those of the content",
                f"{LOOKS}, mode content minus mode style; {UNSAID}",
                content_alone["looks"] - style_alone["looks"], if_not=UNHEARD,
            ),
            above(
                PAPER, "the fine layers are those of the style", "chance of its style, mode style minus mode content",
                styled["style"] - content["style"],
            ),
            above(
                PAPER, "style and content of two pictures: the one's looks",
                f"{LOOKS}, both minus the style alone; {UNSAID}", both["next"] - style_alone["next"], if_not="as above",
            ),
            above(
                PAPER, "style and content of two pictures: the other's style",
                f"chance of its style, both minus the style alone; holds above -0.1; {UNSAID}",
                both["style"] - style_alone["style"], -0.1,
            ),
        ],
    )  # fmt: skip
