"""DEADiff against its control: tokens of both branches in all layers, which learnt by reconstruction alone."""

from __future__ import annotations

import shutil

import numpy as np
from world.config import result
from world_host import WorldHost

from .deadiff import BOTH, PAPER, Measures, Painter
from .reading import require
from .rows import Curve, Findings, Plot, above, estimate

CONTROL = "deadiff_reconstructed"
STRENGTHS = (0.0, 0.5, 1.0)
OTHER = "one that learnt by reconstruction, in all layers"
NO_LEVERAGE = (
    "the control brings the style alone, too: what its coarse layers are told does not act in this small base, so no "
    "content can leak that the text would lose to"
)
# Of 32 cases, the interval of this difference is as wide as the difference.
STYLE_CASES = 4


def run(host: WorldHost, count: int) -> Findings:
    """Measures all rows on that many references."""
    require(result(CONTROL))
    file_name = f"{CONTROL}.safetensors"
    shutil.copyfile(result(CONTROL), host.base / "models" / "model_patches" / file_name)
    deadiff, control = Painter(host, count), Painter(host, count, file_name)
    ours = [deadiff.measured(strength) for strength in STRENGTHS]
    # At 0 nothing acts, so whose weights they are makes no difference.
    theirs = [ours[0], *(control.measured(strength, mode=BOTH) for strength in STRENGTHS[1:])]
    paper, whole, equal = ours[-1], theirs[-1], STRENGTHS[at_equal_text(theirs, ours[-1])]
    more = STYLE_CASES * count
    styles = [
        Painter(host, more).measured(STRENGTHS[-1])["style"],
        Painter(host, more, file_name).measured(equal, mode=BOTH)["style"],
    ]
    rows = [
        above(
            PAPER, f"the text says more of what is shown than with {OTHER}",
            "chance of the prompt's species, DEADiff's minus the other's, strength 1 both",
            paper["species"] - whole["species"], if_not=NO_LEVERAGE,
        ),
        above(
            PAPER, f"less of the reference's content comes than with {OTHER}",
            "chance of its species, the other's minus DEADiff's, strength 1 both", whole["leak"] - paper["leak"],
            if_not="as above",
        ),
        above(
            PAPER, f"at equal text accuracy, more style than with {OTHER}",
            "chance of the reference's style, DEADiff's at strength 1 minus the other's at "
            f"{equal}, the highest at which it follows the text as well (0.02 less counts as equal)",
            styles[0] - styles[1],
        ),
    ]  # fmt: skip
    curves = [
        Curve(f"{name}, {what}", list(STRENGTHS), [estimate(each[what]) for each in series])
        for name, series in (("DEADiff", ours), ("control", theirs))
        for what in ("style", "species")
    ]
    return Findings(PAPER, rows, [Plot("strength", "chance", curves)])


def at_equal_text(theirs: list[Measures], paper: Measures) -> int:
    """Which of the strengths is the highest that keeps as much of the text in the mean; the lowest if none does."""
    kept = [number for number, each in enumerate(theirs) if each["species"].mean() >= paper["species"].mean() - 0.02]
    return int(np.max(kept, initial=0))
