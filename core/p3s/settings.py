"""What a P3SInject node asks for, and the rules for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ..patches.node_text import warn
from ..patches.reference_pass import Reference
from ..patches.schedule import check_range
from .kernel import OFF, PAPER, injection_weight

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

NODE = "P3S Inject"
KEY = "refattention.p3s"
LEARNED = "learned"
BOTH, TEXT = "text and reference", "text"  # which conditions a training drops
SAME, EMPTY, NONE = "same reference", "empty reference", "no injection"


@dataclass(frozen=True)
class Schedule:
    """How the weight of the injection changes with the timestep.

    Attributes:
        kind: one of the kernel's SCHEDULES, or LEARNED, the weight that was learnt with the adapter.
        alpha, beta, exponent: of the paper's Eq. 10.
    """

    kind: str = PAPER
    alpha: float = 0.5
    beta: float = 0.2
    exponent: float = 2.0

    def weight(self, time: float) -> float:
        """eps_t at t / T = `time`, of the kernel's schedules."""
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
        mask: (1, H, W), region of the generated picture; None is everywhere.
        negative: what the negative half of the guidance is given: SAME; EMPTY, what the adapter reads in a latent and
            tokens of zeros; or NONE.
        noise_bias: times the reference's latent is added to the noise that sampling starts from.
    """

    reference: Reference
    adapter: Adapter | None = None
    subject_mask: Tensor | None = None
    strength: float = 1.0
    value_strength: float = 0.2
    schedule: Schedule = Schedule()
    start_percent: float = 0.0
    end_percent: float = 1.0
    mask: Tensor | None = None
    negative: str = SAME
    noise_bias: float = 0.0

    @property
    def is_off(self) -> bool:
        """Whether the injection can have no effect, so that the model is better left unpatched."""
        return self.strength == 0 or self.schedule.kind == OFF or (self.mask is not None and not self.mask.any())


def check_settings(settings: P3SSettings) -> None:
    """Checks what does not need the model.

    Raises:
        ValueError: a number that is out of range, more than one reference or mask, or a mask that shows nothing.
    """
    if not math.isfinite(settings.strength) or not 0 <= settings.strength <= 2:
        raise ValueError(f"strength must be a number between 0 and 2, but is {settings.strength}.")
    if not math.isfinite(settings.noise_bias):
        raise ValueError(f"noise_bias must be a number, but is {settings.noise_bias}.")
    check_range(settings.start_percent, settings.end_percent)
    _check_adapter(settings)
    count, _, *sides = settings.reference.samples.shape
    if count != 1:
        raise ValueError(f"The reference is a batch of {count} pictures, but {NODE} takes one. Select one of them.")
    if len(sides) > 2 and sides[0] != 1:  # what a VAE of videos makes of a batch
        raise ValueError(f"The reference is a video of {sides[0]} latents, but {NODE} takes one picture. Encode one.")
    if settings.mask is not None and len(settings.mask) != 1:
        raise ValueError(f"mask holds {len(settings.mask)} masks, but {NODE} takes one for all pictures. Select one.")
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


def _check_adapter(settings: P3SSettings) -> None:
    adapter, kind = settings.adapter, settings.schedule.kind
    has_weight = adapter is not None and adapter.network.model.weight is not None
    if kind == LEARNED and not has_weight:
        raise ValueError(
            f"schedule is '{LEARNED}', but {'the adapter' if adapter else 'a model without an adapter'} has no weight "
            "that was learned. Choose another schedule, or train an adapter with learned_weight."
        )
    if settings.negative == EMPTY and adapter is None:
        raise ValueError(
            f"negative is '{EMPTY}', but only an adapter can read one. Connect an adapter, or choose '{NONE}'."
        )
    if has_weight and kind not in (LEARNED, OFF):
        warn(
            f"The adapter has learned its own weight, but schedule is '{kind}', which takes its place. Choose "
            f"'{LEARNED}' to use the adapter's."
        )
