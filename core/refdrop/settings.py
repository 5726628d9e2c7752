"""What one RefDrop node asks for, and the rules on how several of them add up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.masks import to_grid
from ..patches.blocks import Block
from ..patches.reference_pass import Reference
from ..patches.schedule import check_range
from .cache import ReferenceCache
from .past_run import PastRun


@dataclass(frozen=True, eq=False)
class RefDropSettings:
    """One set of references with a common strength. Immutable: clones of a model share it.

    Attributes:
        strength: c of the RefDrop equation, for each reference.
        blocks: the blocks whose self-attention is guided.
        reference: None takes the first `batch_references` samples of the batch itself, or frames of the video, unless
            there is `recorded`.
        mask: (1 or B, H, W), region of the generated picture; None is everywhere.
        reference_mask: (1 or R, H, W), what of the references may be attended to; None is all.
        concat: attend to [K_j; K] instead of K_j.
        start_percent, end_percent: part of the sampling schedule, both ends included.
        reference_every: how many steps use what one pass of the reference gave.
        share_conditional: the unconditional half follows the conditional pass of the reference too, unlike the paper.
        cache: keeps what is seen of the reference for the next run. All clones of a model share it.
        recorded: an earlier run whose pictures are the references.
    """

    strength: float
    blocks: frozenset[Block]
    reference: Reference | None = None
    batch_references: int = 1
    mask: Tensor | None = None
    reference_mask: Tensor | None = None
    concat: bool = False
    start_percent: float = 0.0
    end_percent: float = 1.0
    reference_every: int = 1
    share_conditional: bool = False
    cache: ReferenceCache | None = None
    recorded: PastRun | None = None

    @property
    def is_from_batch(self) -> bool:
        """Whether the first of what is sampled are the references for the rest."""
        return self.reference is None and self.recorded is None

    @property
    def references(self) -> int:
        """How many references share the strength."""
        if self.recorded is not None:
            return self.recorded.references
        return self.batch_references if self.reference is None else len(self.reference.samples)

    @property
    def total_strength(self) -> float:
        """Sum of the strengths; concatenated references are one attention and count once."""
        return self.strength if self.concat else self.strength * self.references

    @property
    def is_off(self) -> bool:
        """Whether the node can have no effect, so that the model is better left unpatched."""
        return self.strength == 0 or not self.blocks or (self.mask is not None and not self.mask.any())


def check_total_strength(every: Sequence[RefDropSettings]) -> None:
    """Checks that wherever references meet (same step, same block, same pixel) their strengths sum up to [-1, 1].

    Raises:
        ValueError: somewhere the sum leaves [-1, 1].
    """
    for at in {each.start_percent for each in every}:
        running = [each for each in every if each.start_percent <= at <= each.end_percent]
        for block in frozenset().union(*(each.blocks for each in running)):
            low, high = _strength_range([each for each in running if block in each.blocks])
            worst = low if -low > high else high
            if abs(worst) > 1 + 1e-5:
                raise ValueError(
                    f"The strengths of the RefDrop references add up to {worst:g}, but the sum must lie between "
                    "-1 and 1. Lower the strengths, use fewer references, or keep them apart with masks."
                )


def _strength_range(every: Sequence[RefDropSettings]) -> tuple[float, float]:
    """Smallest and largest sum of strengths over the picture."""
    size = [max(mask.shape[i] for mask in _masks(every)) for i in (-2, -1)]
    total = torch.zeros(1, *size)
    for each, mask in zip(every, _masks(every), strict=True):
        total = total + each.total_strength * to_grid(mask.float(), (size[0], size[1]))
    return total.min().item(), total.max().item()


def _masks(every: Sequence[RefDropSettings]) -> list[Tensor]:
    return [torch.ones(1, 1, 1) if each.mask is None else each.mask for each in every]


def check_settings(settings: RefDropSettings) -> None:
    """Checks what does not need the model.

    Raises:
        ValueError: strength is not a number in [-1, 1], or the percentages are the wrong way round.
    """
    if not math.isfinite(settings.strength) or abs(settings.strength) > 1:
        raise ValueError(f"strength must be a number between -1 and 1, but is {settings.strength}.")
    check_range(settings.start_percent, settings.end_percent)
    if settings.reference_mask is not None:
        _check_reference_mask(settings.reference_mask, settings.references)


def _check_reference_mask(mask: Tensor, references: int) -> None:
    if len(mask) not in (1, references):
        raise ValueError(
            f"reference_mask holds {len(mask)} masks for {references} references. "
            "Give one mask for all references, or one for each."
        )
    if not mask.flatten(1).any(dim=1).all():
        raise ValueError(
            "reference_mask is all black, so nothing of the reference could be attended to. "
            "Paint the part to use white, or leave the input unconnected."
        )
