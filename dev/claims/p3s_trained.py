"""P3S's claims about a trained adapter: by the template, which trains one for each of some subjects."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from refattention_demo.world import captions, record, truth
from refattention_demo.world.record import Record
from world.config import HELD_OUT
from world_host import WorldHost, inputs, node_id, small

from demo_host import load_workflow
from demo_p3s import learning

from .point_mask import PAPER, inside
from .reading import Reader
from .rows import Curve, Findings, Plot, above, estimate, slopes

VIEWS, SEEDS = 4, 4  # pictures to learn from, and to paint of each subject
STRENGTHS = (0.0, 1.0)
SCHEDULES = ("fixed", "increasing", "decreasing")
NEAR = "the paper's weights are 0.7 to 1.2, the fixed one is 1: too near to each other for so few subjects"
FEW = "8 subjects are too few: they differ among themselves by more than this does"
FIDELITY, EDITABILITY = "chance of the subject's body and shirt colour", "chance of the prompt's scene and pose"
Measures = dict[str, NDArray[np.float64]]  # (subjects, SEEDS) each


@dataclass(frozen=True)
class Case:
    """A subject.

    Attributes:
        views: pictures to learn from; in the first one, the reference, its look-alike stands beside it.
        wanted: what the prompt asks for.
    """

    views: tuple[Record, ...]
    wanted: Record

    @property
    def prompt(self) -> str:
        """Names the subject by the identifier, pose, scene and style; nothing of what it looks like."""
        named = replace(captions.EVERYTHING, body=0, eyes=0, shirt=0)
        said = captions.caption(self.wanted, np.random.default_rng(0), named)
        return said.replace("a ", "a sks ", 1)


def cases(count: int) -> list[Case]:
    """Held-out pairs of look-alikes of the flat style, the first of whom is the subject."""
    found = []
    for number in range(count):
        rng = np.random.default_rng(HELD_OUT + 7 * 10**6 + number)
        first = replace(record.look_alikes(rng), style="flat")
        alone = replace(first, figures=first.figures[:1])
        views = first, *(record.another_view(alone, rng) for _ in range(VIEWS - 1))
        wanted = record.another_view(alone, rng)
        found.append(Case(views, wanted))
    return found


class Subject:
    """A subject on a host, which keeps what it trained last: pictures of one training are best painted in a row."""

    def __init__(self, host: WorldHost, number: int, case: Case) -> None:
        self.host, self.number, self.case = host, number, case
        self.files = [host.put_picture(f"trained_{number}_{n}", view) for n, view in enumerate(case.views)]

    def painted(self, training: dict[str, Any], **settings: Any) -> NDArray[np.float32]:
        """(SEEDS, H, W, 3): by the template, with settings of P3STrain and of P3SInject."""
        graph = small(load_workflow("p3s_train"), self.case.prompt, self.number)
        views = self.case.views
        subject, other = [inside(truth.shirt(view, 0)) for view in views], inside(truth.shirt(views[0], 1))
        graph = learning(graph, self.files, subject, other, self.case.wanted.figures[0].character.species)
        del graph[node_id(graph, "P3SSave")]  # dozens of files of 20 MB
        inputs(graph, "P3STrain").update(training)
        inputs(graph, "P3SInject").update(settings)
        inputs(graph, "EmptyLatentImage")["batch_size"] = SEEDS
        return self.host.saved(graph)


def subjects(host: WorldHost, count: int) -> list[Subject]:
    """As many as that many pictures are of."""
    return [Subject(host, number, case) for number, case in enumerate(cases(count // SEEDS))]


def measured(
    reader: Reader, chosen: list[Subject], training: dict[str, Any], *settings: dict[str, Any]
) -> list[Measures]:
    """All subjects, each by one training, with each of the settings of P3SInject."""
    found = [
        [_read(reader, subject.painted(training, **each), subject.case) for each in settings] for subject in chosen
    ]
    return [{name: np.stack([one[at][name] for one in found]) for name in found[0][at]} for at in range(len(settings))]


def _read(reader: Reader, pictures: NDArray[np.float32], case: Case) -> Measures:
    """(SEEDS,) of each measure."""
    chances, shown = reader.chances(pictures), replace(case.views[0], figures=case.views[0].figures[:1])

    def mean(of: Record, *names: str) -> NDArray[np.float64]:
        return np.mean([reader.of(chances, name, of) for name in names], axis=0, dtype=float)

    other = replace(case.views[0], figures=case.views[0].figures[1:])
    return {
        "fidelity": mean(shown, "body", "shirt"),
        "editability": mean(case.wanted, "scene", "pose"),
        # Look-alikes differ in the shirt only. Its median colour, as for the untrained method, says little of stripes.
        "selected": mean(shown, "shirt") - mean(other, "shirt"),
    }


def run(host: WorldHost, count: int) -> Findings:
    """Measures all rows that one training of each subject is enough for."""
    chosen, reader = subjects(host, count), Reader()
    settings: list[dict[str, Any]] = [
        *({"strength": strength} for strength in STRENGTHS),
        *({"schedule": name} for name in SCHEDULES),
    ]
    *by_strength, fixed, rising, falling = measured(reader, chosen, {}, *settings)
    none, paper = by_strength[0], by_strength[-1]
    series = {name: np.stack([each[name] for each in by_strength], -1) for name in paper}
    others = (rising["fidelity"] + falling["fidelity"]) / 2
    of = f"{len(chosen)} subjects"
    rows = [
        above(
            PAPER, "the trained adapter paints the subject, not the other",
            f"chance of its shirt's colour minus that of the other's, strength 1 minus 0; {of}",
            paper["selected"] - none["selected"],
        ),
        above(
            PAPER, "a higher weight of the adapter: more fidelity", f"slope of the {FIDELITY}; {of}",
            slopes(STRENGTHS, series["fidelity"]),
        ),
        above(
            PAPER, "a higher weight of the adapter: less editability", f"fall of the {EDITABILITY}; {of}",
            -slopes(STRENGTHS, series["editability"]),
        ),
        above(
            PAPER, "the schedule keeps more of the prompt than a fixed weight",
            f"{EDITABILITY}, the paper's schedule minus fixed; {of}", paper["editability"] - fixed["editability"],
            if_not=NEAR,
        ),
        above(
            PAPER, "and costs fidelity", f"{FIDELITY}, fixed minus the paper's schedule; {of}",
            fixed["fidelity"] - paper["fidelity"], if_not="as above",
        ),
        above(
            PAPER, "table III: quadratic weights lose fidelity",
            f"{FIDELITY}, the paper's schedule minus the mean of increasing and decreasing; {of}",
            paper["fidelity"] - others,
        ),
        above(
            PAPER, "table III: increasing keeps more of the prompt than decreasing",
            f"{EDITABILITY}, increasing minus decreasing; {of}", rising["editability"] - falling["editability"],
            if_not=FEW,
        ),
    ]  # fmt: skip
    curves = [
        Curve(f"trained, {name}", list(STRENGTHS), [estimate(series[name][..., at]) for at in range(len(STRENGTHS))])
        for name in ("fidelity", "editability")
    ]
    return Findings(PAPER, rows, [Plot("strength", "chance", curves)])
