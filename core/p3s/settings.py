"""What a P3SInject node asks for, and the rules for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ..patches.reference_pass import Reference
from ..patches.schedule import check_range
from .kernel import OFF, PAPER, injection_weight

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

NODE = "P3SInject"
KEY = "refattention.p3s"


@dataclass(frozen=True)
class Schedule:
    """How the weight of the injection changes with the timestep.

    Attributes:
        kind: one of the kernel's SCHEDULES.
        alpha, beta, exponent: of the paper's Eq. 10.
    """

    kind: str = PAPER
    alpha: float = 0.5
    beta: float = 0.2
    exponent: float = 2.0

    def weight(self, time: float) -> float:
        """eps_t at t / T = `time`."""
        return injection_weight(self.kind, time, self.alpha, self.beta, self.exponent)


@dataclass(frozen=True, eq=False)
class Adapter:
    """What was trained for a subject.

    Attributes:
        network: reads the reference: (latent, vision, timesteps, context, y) -> features of the frozen layers.
        vision: c_s, (1, L, width), the vision encoder's tokens of the reference; on the CPU.
        identity_at_zero: leaves tokens of zeros out, so that an untrained network changes nothing.
    """

    network: ModelPatcher
    vision: Tensor
    identity_at_zero: bool = True


@dataclass(frozen=True, eq=False)
class P3SSettings:
    """A subject whose hidden states are injected. Immutable: clones of a model share it.

    Attributes:
        reference: one latent of any size.
        adapter: gives the hidden states; None lets the model itself read the reference.
        subject_mask: (1, H, W), which part of the reference is the subject; None is all of it.
        strength: multiplies the weight of the schedule.
        value_strength: lambda of Eq. 7.
        schedule: the weight at each timestep.
        start_percent, end_percent: part of the sampling schedule, both ends included.
    """

    reference: Reference
    adapter: Adapter | None = None
    subject_mask: Tensor | None = None
    strength: float = 1.0
    value_strength: float = 0.2
    schedule: Schedule = Schedule()
    start_percent: float = 0.0
    end_percent: float = 1.0

    @property
    def is_off(self) -> bool:
        """Whether the injection can have no effect, so that the model is better left unpatched."""
        return self.strength == 0 or self.schedule.kind == OFF


def check_settings(settings: P3SSettings) -> None:
    """Checks what does not need the model.

    Raises:
        ValueError: a number that is out of range, more than one reference or mask, or a mask that shows nothing.
    """
    if not math.isfinite(settings.strength) or not 0 <= settings.strength <= 2:
        raise ValueError(f"strength must be a number between 0 and 2, but is {settings.strength}.")
    check_range(settings.start_percent, settings.end_percent)
    count = len(settings.reference.samples)
    if count != 1:
        raise ValueError(f"The reference is a batch of {count} pictures, but {NODE} takes one. Select one of them.")
    mask = settings.subject_mask
    if mask is None:
        return
    if len(mask) != 1:
        raise ValueError(f"subject_mask holds {len(mask)} masks for one reference. Select the one that belongs to it.")
    if not mask.any():
        raise ValueError(
            "subject_mask is all black, so nothing of the reference would be injected. Make the subject white, or "
            "leave the input unconnected."
        )
