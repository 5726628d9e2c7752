"""How the reference of a guide is read during one sampling run: as rarely as possible."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..patches.bank import KeyValueBank
from ..patches.blocks import Block
from ..patches.families import Attentions
from ..patches.reference_pass import Recording, Reference, ReferencePass
from ..patches.roles import Cond
from .cache import run_key

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.samplers import CFGGuider

    from .settings import Guide

Evaluate = Callable[..., Any]  # the host's calc_cond_batch(model, conds, x, timestep, model_options)


class ReferenceReading:
    """What one run sees of a guide's reference.

    Args:
        guide: whose reference it is.
        reference: of the guide.
        guider: of the run.
        sigmas: the schedule.
        attentions: of the model.
        own: key of the method in transformer_options.
    """

    def __init__(
        self,
        guide: Guide,
        reference: Reference,
        guider: CFGGuider,
        sigmas: Tensor,
        attentions: Attentions,
        own: str,
    ) -> None:
        self.passes = ReferencePass(reference, guider.conds)
        self._guide = guide
        self._sigmas = sigmas.cpu()
        self._attentions = attentions
        self._key: Hashable = None
        if guide.cache is not None:
            self._key = run_key(guider.model_patcher, guider.model_options, sigmas, self.passes.prompts, own)
        # By device, because the host may run the halves side by side: a place in the schedule and what was seen there
        self._latest: dict[torch.device, tuple[Hashable, KeyValueBank]] = {}

    def look(
        self,
        evaluate: Evaluate,
        model: BaseModel,
        conds: list[list[Cond] | None],
        sigma: Tensor,
        options_for: Callable[[Recording], dict[str, Any]],
    ) -> KeyValueBank:
        """The reference's keys and values for an evaluation, from a pass of it only if there is no other way.

        Args:
            evaluate, model, conds, sigma: as for `ReferencePass.run`.
            options_for: model_options in which a recording is at work.
        """
        guide, cache, names = self._guide, self._guide.cache, self.passes.roles
        roles = names.of(conds)
        place = (self._interval(sigma.item()), tuple(roles))
        # Taken out: the next pass must not find the memory of the last one occupied.
        seen_at, bank = self._latest.pop(sigma.device, (None, None))
        if bank is not None and seen_at == place:
            self._latest[sigma.device] = place, bank
            return bank
        del bank
        # What another node made for this evaluation has no role, and nothing tells whether it will be the same again.
        is_known = all((role is None) == (entries is None) for role, entries in zip(roles, conds, strict=True))
        keeper = cache if is_known and self._key is not None else None

        def passed(blocks: frozenset[Block]) -> KeyValueBank:
            recording = Recording(blocks, self._attentions.layers, "RefDrop", guide.reference_mask, guide.share_halves)
            self.passes.run(evaluate, model, self._halves(conds, roles), sigma, options_for(recording))
            return recording.bank

        bank = keeper.get(self._key, place, names.named) if keeper else None
        if bank is None:
            bank = passed(guide.blocks)
            if keeper:
                keeper.put(self._key, place, bank, names.placed)
        elif bank.dropped:
            bank.add(passed(bank.dropped), lambda chunk: chunk)
        if guide.reference_every > 1:
            self._latest[sigma.device] = place, bank
        return bank

    def close(self) -> None:
        """Lets go of what the reference's own conditioning holds, and reports."""
        self.passes.close()
        if self._guide.cache is not None:
            self._guide.cache.report()

    def _interval(self, sigma: float) -> float:
        """What names the steps that share a look: the noise level itself, or the number of their interval."""
        if self._guide.reference_every == 1:
            return sigma
        steps = max(len(self._sigmas) - 1, 1)
        step = int((self._sigmas[1:steps] >= sigma * (1 - 1e-6)).sum())
        return step // self._guide.reference_every

    def _halves(self, conds: list[list[Cond] | None], roles: list[str | None]) -> list[list[Cond] | None]:
        """The halves to read: all of the evaluation, or the conditional one alone where all share it."""
        if not self._guide.share_halves or "positive" not in roles:
            return conds
        return [entries if role == "positive" else None for entries, role in zip(conds, roles, strict=True)]
