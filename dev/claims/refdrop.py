"""RefDrop's claims, by its own template: a reference picture, a prompt that names another pose and scene."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from refattention_demo.world import captions, record
from refattention_demo.world.record import Record
from world.config import HELD_OUT
from world_host import WorldHost, inputs, small

from demo_host import load_workflow

from .reading import FACE_BOX, SHIRT_BOX, Reader, distance, drawn
from .rows import Curve, Findings, Plot, Row, above, estimate, slopes

PAPER = "RefDrop"
STRENGTHS = (-0.3, 0.0, 0.2, 0.4, 0.6)
FOREIGN = (0.0, 0.4)
IDENTITY = "the chance of the reference's body and shirt colour"
AGAINST_NONE = "c = 0.4 minus 0; holds above -0.1"


@dataclass(frozen=True)
class Case:
    """One reference, and what the prompt asks for instead of the reference's pose and scene."""

    reference: Record
    wanted: Record

    @property
    def prompt(self) -> str:
        """Names species, pose, scene and style; nothing of what the reference is to bring."""
        return captions.caption(
            self.wanted, np.random.default_rng(0), replace(captions.EVERYTHING, body=0, eyes=0, shirt=0)
        )

    @property
    def reference_prompt(self) -> str:
        """Names all that the reference shows."""
        return captions.caption(self.reference, np.random.default_rng(0), captions.EVERYTHING)


def cases(count: int) -> list[Case]:
    """Held-out references in the flat style."""
    found = []
    for number in range(count):
        rng = np.random.default_rng(HELD_OUT + 10**6 + number)
        reference = replace(record.random_record(rng), style="flat")
        found.append(Case(reference, record.another_view(reference, rng)))
    return found


def measure(reader: Reader, picture: NDArray[np.float32], case: Case) -> dict[str, float]:
    """Identity with the reference, obedience to the prompt, and what leaks."""
    chances = reader.chances(picture[None])

    def chance(name: str, of: Record) -> float:
        return float(reader.of(chances, name, of)[0])

    shown = drawn(case.reference)
    return {
        "identity": (chance("body", case.reference) + chance("shirt", case.reference)) / 2,
        "distance": distance(picture, shown, SHIRT_BOX) / 2 + distance(picture, shown, FACE_BOX) / 2,
        "scene": chance("scene", case.wanted),
        "pose": chance("pose", case.wanted),
        "leak": chance("scene", case.reference),
    }


def workflow(
    case: Case, seed: int, strength: float, reference_file: str, batch: int = 1, **settings: Any
) -> dict[str, Any]:
    """The published template with this case's pictures, prompts and sizes, and settings of the node."""
    graph = small(load_workflow("refdrop"), case.prompt, seed)
    inputs(graph, "LoadImage")["image"] = reference_file
    inputs(graph, "CLIPTextEncode", "Prompt of the reference")["text"] = case.reference_prompt
    inputs(graph, "EmptyLatentImage")["batch_size"] = batch
    inputs(graph, "RefDropApply").update(strength=strength, **settings)
    return graph


def run(host: WorldHost, count: int) -> Findings:
    """Measures all rows on that many references."""
    chosen, reader = cases(count), Reader()
    files = [host.put_picture(f"refdrop_{number}", case.reference) for number, case in enumerate(chosen)]

    def measured(number: int, strength: float, file: str, has_prompt: bool = True) -> dict[str, float]:
        graph = workflow(chosen[number], number, strength, file)
        if not has_prompt:
            del inputs(graph, "RefDropApply")["reference_positive"]
        return measure(reader, host.saved(graph)[0], chosen[number])

    own = [[measured(number, c, files[number]) for c in STRENGTHS] for number in range(count)]
    # At 0 no reference acts, so whose it is makes no difference.
    without = [each[STRENGTHS.index(0.0)] for each in own]
    foreign = [[without[number], measured(number, 0.4, files[(number + 1) % count])] for number in range(count)]
    wordless = [
        np.array([measured(n, 0.4, files[(n + shift) % count], has_prompt=False)["identity"] for n in range(count)])
        for shift in range(2)
    ]
    found = _findings(_table(own), _table(foreign), wordless[0] - wordless[1], _diversity(host, chosen, files))
    found.rows.append(Row(PAPER, "video: flicker falls with c = 0.2", "", None, None, "no video model is trained"))
    return found


Table = dict[str, NDArray[np.float64]]


def _table(measured: list[list[dict[str, float]]]) -> Table:
    """Measure -> (cases, strengths)."""
    return {name: np.array([[one[name] for one in case] for case in measured]) for name in measured[0][0]}


def _findings(own: Table, foreign: Table, wordless: NDArray[np.float64], diversity: NDArray[np.float64]) -> Findings:
    at, zero = list(STRENGTHS), STRENGTHS.index(0.0)
    four = STRENGTHS.index(0.4)
    rises = np.diff(own["identity"].mean(0)) > 0
    monotonic = "monotonic in the mean" if rises.all() else "not monotonic in the mean"
    own_at = {name: values[:, four] for name, values in own.items()}
    foreign_at = {name: values[:, FOREIGN.index(0.4)] for name, values in foreign.items()}
    scene = own_at["scene"] - own["scene"][:, zero]
    surplus = own_at["identity"] - foreign_at["identity"]
    closer = foreign_at["distance"] - own_at["distance"]
    gains = [(each["identity"] - own["identity"][:, zero]).mean() for each in (foreign_at, own_at)]
    share = gains[0] / gains[1]
    rows = [
        above(PAPER, "identity rises with c", f"slope of {IDENTITY}", slopes(at, own["identity"]), note=monotonic),
        above(
            PAPER, "colours approach the reference's", "fall of the colour distance by c", -slopes(at, own["distance"])
        ),
        above(
            PAPER, "this reference acts, not any", f"{IDENTITY}, own minus foreign reference, c = 0.4", surplus,
            note=f"{share:.0%} of what c = 0.4 brings comes with the foreign one, by the reference's prompt",
        ),
        above(
            PAPER, "also where no prompt describes it", "the same, `reference_positive` unconnected", wordless
        ),
        above(PAPER, "the same by colour", "colour distance, foreign minus own reference, c = 0.4", closer),
        above(PAPER, "the scene follows the prompt", f"chance of the prompt's scene, {AGAINST_NONE}", scene, -0.1),
        above(PAPER, "negative c: subjects differ more", "colour distance in a batch, c = -0.3 minus 0", diversity),
    ]  # fmt: skip
    return Findings(PAPER, rows, [*(_plot(own, foreign, name) for name in ("identity", "distance")), _obedience(own)])


def _plot(own: Table, foreign: Table, name: str) -> Plot:
    tables = (("own reference", STRENGTHS, own), ("foreign reference", FOREIGN, foreign))
    return Plot(
        "c", name, [Curve(label, list(at), [estimate(v) for v in table[name].T]) for label, at, table in tables]
    )


def _obedience(own: Table) -> Plot:
    named = {"scene": "prompt's scene", "pose": "prompt's pose", "leak": "reference's scene"}
    curves = [Curve(label, list(STRENGTHS), [estimate(v) for v in own[name].T]) for name, label in named.items()]
    return Plot("c", "chance", curves)


def _diversity(host: WorldHost, chosen: list[Case], files: list[str]) -> NDArray[np.float64]:
    """How much further apart in colour a batch's two pictures are at c = -0.3 than at 0; the first is the reference."""

    def apart(number: int, strength: float) -> float:
        graph = workflow(chosen[number], number, strength, files[number], batch=2)
        apply = inputs(graph, "RefDropApply")
        del apply["reference_latent"], apply["reference_positive"]
        first, second = host.saved(graph)
        return (distance(first, second, SHIRT_BOX) + distance(first, second, FACE_BOX)) / 2

    return np.array([apart(number, -0.3) - apart(number, 0.0) for number in range(len(chosen))])
