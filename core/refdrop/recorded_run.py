"""A sampling run that is being recorded."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from ..patches.attention import Chunk
from ..patches.bank import KeyValueBank
from ..patches.blocks import Block
from ..patches.conditionings import Conditionings
from ..patches.node_text import Show, nowhere
from ..patches.unet import family
from .cache import MIB
from .past_run import PastRun, origin_of, weights_of

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

log = logging.getLogger(__name__)


class RecordedRun(PastRun):
    """What one sampling run gives at each noise level, on the CPU.

    Args:
        model: that runs.
        blocks: those to record.
        references: how many of the first pictures of its batch, or frames of its video.
        budget: bytes.
        is_half: whether keys and values are kept in float16.
        show: shows on the node how much it is, besides the log.
        sampling: how the run is sampled, for the user to read.
    """

    def __init__(
        self,
        model: ModelPatcher,
        blocks: frozenset[Block],
        references: int,
        budget: int,
        is_half: bool,
        show: Show = nowhere,
        sampling: str = "",
    ) -> None:
        super().__init__(references, family(model), origin_of(model))
        self.blocks = blocks
        self.is_half = is_half
        self.sampling = sampling
        self._budget = budget
        self._show = show
        self._fits = weights_of(model)

    def begin(self, sigmas: Tensor, brought: dict[str, list[str]]) -> None:
        """Begins the run with these noise levels, (steps + 1,), and LoRAs of the prompts."""
        self.schedule = sigmas.tolist()
        self.brought = brought

    def has(self, sigma: float, roles: Iterable[str]) -> bool:
        """Whether all halves of these roles are recorded at a noise level."""
        bank = self.levels.get(sigma)
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

        self.keep(sigma, bank, placed)
        expected = self.size + bank.size * max(levels - len(self.levels), 0)
        if expected > self._budget:
            raise ValueError(
                f"RefDrop Record needs about {expected / MIB:.0f} MiB for this run, but cache_mib is "
                f"{self._budget / MIB:.0f}. Raise it, or set cache_precision to float16, record fewer blocks, steps or "
                "pixels."
            )

    def report(self) -> None:
        """Tells the log and the user how much is kept."""
        fill = f"{self.size / MIB:.0f} of {self._budget / MIB:.0f} MiB"
        text = f"{len(self.levels)} noise levels kept in {fill}."
        log.info("RefDrop Record: %s", text)
        self._show(text)

    def _half(self, role: str) -> int:
        if role not in self.roles:
            self.roles.append(role)
        return self.roles.index(role)
