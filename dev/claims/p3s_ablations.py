"""P3S's tables II and IV: the adapter is trained in other ways, too, for each of some subjects."""

from __future__ import annotations

from typing import Any

import numpy as np
from world_host import WorldHost

from .p3s_trained import EDITABILITY, FEW, FIDELITY, Measures, measured, subjects
from .point_mask import PAPER
from .reading import Reader
from .rows import Findings, Row, above

REVERSED = (
    "the other way round on this small base, where the loss on the last layer mends that one's maps alone: late in "
    "training L_ac is 0.004 there and 0.245 on the mean of all 16 layers (0.258 without the loss), by the loss on all "
    "0.029; 3 subjects"
)


def run(host: WorldHost, count: int) -> Findings:
    """Measures all rows with five trainings of each subject."""
    chosen, reader = subjects(host, count), Reader()
    trainings: list[dict[str, Any]] = [{}, {"rngr": False}, {"where": "none"}, {"where": "all"}]
    whole, without_encoder, without_loss, everywhere = (
        measured(reader, chosen, training, {})[0] for training in trainings
    )
    (learned,) = measured(reader, chosen, {"learned_weight": True}, {"schedule": "learned"})
    of = f"{len(chosen)} subjects"
    both = f"{FIDELITY} and of what the prompt says, the schedule minus the learned weight; holds above -0.1; {of}"
    balance = np.mean([whole[name] - learned[name] for name in ("fidelity", "editability")], axis=0)
    return Findings(
        PAPER,
        [
            *_traded("table II: the RNGR encoder", whole, without_encoder, "without it", of),
            *_traded("tables II and IV: L_ac on the last layer", whole, without_loss, "without L_ac", of),
            *_traded("table IV: L_ac on the last layer", whole, everywhere, "on all layers", of, REVERSED),
            above(PAPER, "a learned weight is no better than the schedule", both, balance, -0.1, if_not=FEW),
        ],
    )


def _traded(what: str, whole: Measures, other: Measures, named: str, of: str, why: str = FEW) -> list[Row]:
    """The paper's whole method is more faithful to the subject and less to the prompt than one without a part."""
    fidelity = whole["fidelity"] - other["fidelity"]
    editability = other["editability"] - whole["editability"]
    return [
        above(PAPER, f"{what}: more fidelity", f"{FIDELITY}, with it minus {named}; {of}", fidelity, if_not=why),
        above(
            PAPER, f"{what}: less editability", f"{EDITABILITY}, {named} minus with it; {of}", editability, if_not=FEW
        ),
    ]
