"""Keys and values of a sampling run, kept as an object that later runs are guided by."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..patches.attention import Chunk
from ..patches.bank import KeyValueBank
from ..patches.blocks import Block
from ..patches.conditionings import Cond, Conditionings
from ..patches.node_text import Show, nowhere
from ..patches.unet import family
from .cache import MIB, Identity

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

log = logging.getLogger(__name__)
CLOSE = 1e-5  # relative difference of two noise levels that are the same but for rounding


class RecordedRun:
    """What one sampling run gave at each noise level, on the CPU.

    Args:
        model: that runs.
        blocks: those to record.
        references: how many of the first pictures of its batch, or frames of its video.
        budget: bytes.
        is_half: whether keys and values are kept in float16.
        show: shows on the node how much it is, besides the log.
    """

    def __init__(
        self,
        model: ModelPatcher,
        blocks: frozenset[Block],
        references: int,
        budget: int,
        is_half: bool,
        show: Show = nowhere,
    ) -> None:
        self.blocks = blocks
        self.references = references
        self.is_half = is_half
        self.size = 0
        self._budget = budget
        self._show = show
        self._family = family(model)
        self._model = Identity(model.model)
        self._weights = model.patches_uuid
        self._levels: dict[float, KeyValueBank] = {}
        self._roles: list[str] = []  # a recorded chunk's half is a place in this list

    def has(self, sigma: float, roles: Iterable[str]) -> bool:
        """Whether all halves of these roles are recorded at a noise level."""
        bank = self._levels.get(sigma)
        return bank is not None and {self._half(role) for role in roles} <= bank.halves

    def put(self, sigma: float, bank: KeyValueBank, roles: list[str | None], names: Conditionings, levels: int) -> None:
        """Keeps what one evaluation gave.

        Args:
            bank: already on the CPU.
            roles: of the evaluation's conditionings.
            levels: how many noise levels the run is expected to have.

        Raises:
            ValueError: the whole run will not fit into the budget.
        """

        def placed(chunk: Chunk) -> Chunk:
            half, place = names.by_place(chunk)
            return self._half(roles[half] or ""), place

        self._levels.setdefault(sigma, KeyValueBank("RefDropApply")).add(bank, placed)
        self.size += bank.size
        expected = self.size + bank.size * max(levels - len(self._levels), 0)
        if expected > self._budget:
            raise ValueError(
                f"RefDropRecord needs about {expected / MIB:.0f} MiB for this run, but cache_mib is "
                f"{self._budget / MIB:.0f}. Raise it, or set cache_precision to float16, record fewer blocks, steps or "
                "pixels."
            )

    def look(
        self, level: float, conds: list[list[Cond] | None], names: Conditionings, share_conditional: bool = False
    ) -> KeyValueBank:
        """Keys and values for an evaluation of another run.

        Args:
            level: its noise level.
            conds: of the evaluation.
            names: of the conditionings of that run.
            share_conditional: whether a half without a recording of its own uses that of another.

        Raises:
            ValueError: the noise level, or one of the halves at it, was not recorded.
        """
        near = min(self._levels, key=lambda recorded: abs(recorded - level), default=None)
        if near is None or abs(near - level) > CLOSE * level:
            raise ValueError(
                f"RefDropApply: the cache holds {len(self._levels)} noise levels{self._range()}, but this sampler asks "
                f"for {level:.4g}. Record with the same sampler, scheduler, steps and denoise."
            )
        bank, roles = self._levels[near], names.roles(conds)
        if not share_conditional:
            self._check_halves(bank, roles, conds)
        halves = [roles.index(role) if role in roles else -1 for role in self._roles]
        found = KeyValueBank("RefDropApply", share_conditional)
        found.add(bank, lambda chunk: names.by_uuid((halves[chunk[0]], chunk[1])))
        return found

    def check(self, model: ModelPatcher, blocks: frozenset[Block]) -> None:
        """Checks that a model may be guided by the recording in some of its blocks.

        Raises:
            ValueError: the recording was made with another model or other weights, or lacks one of the blocks.
        """
        if self._family != family(model):
            raise ValueError(
                f"cache was recorded with a {self._family} model, but the connected one is {family(model)}. "
                "Record with the model that is to be guided."
            )
        if self._model != Identity(model.model) or self._weights != model.patches_uuid:
            what = "other weights (a LoRA)" if self._model == Identity(model.model) else "another checkpoint"
            raise ValueError(
                f"cache was recorded with {what} than the connected model has. Connect RefDropRecord and "
                "RefDropApply to the same output."
            )
        recorded = {block for bank in self._levels.values() for block in bank.blocks}
        if missing := sorted(blocks - recorded):
            kind, number = missing[0]
            raise ValueError(
                f"cache lacks {len(missing)} of the chosen blocks, {kind}.{number} for example. Choose the same blocks "
                "in RefDropRecord and RefDropApply."
            )

    def report(self) -> None:
        """Tells the log and the user how much is kept."""
        fill = f"{self.size / MIB:.0f} of {self._budget / MIB:.0f} MiB"
        text = f"{len(self._levels)} noise levels kept in {fill}."
        log.info("RefDropRecord: %s", text)
        self._show(text)

    def _half(self, role: str) -> int:
        if role not in self._roles:
            self._roles.append(role)
        return self._roles.index(role)

    def _range(self) -> str:
        return f" from {max(self._levels):.4g} to {min(self._levels):.4g}" if self._levels else ""

    def _check_halves(self, bank: KeyValueBank, roles: list[str | None], conds: list[list[Cond] | None]) -> None:
        there = {self._roles[half] for half in bank.halves}
        for role, entries in zip(roles, conds, strict=True):
            if entries is not None and role not in there:
                raise ValueError(
                    f"RefDropApply: the cache has no recording of the {role or 'further'} prompt at this step. "
                    "Record with cfg above 1 and the same guidance nodes, or turn share_conditional on."
                )
