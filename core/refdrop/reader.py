"""How a reference is read during one sampling run: as rarely as possible."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..patches.bank import KeyValueBank
from ..patches.blocks import Block
from ..patches.conditionings import Cond
from ..patches.families.attentions import Attentions
from ..patches.passes import Asked
from ..patches.reference_pass import Recording, Reference, ReferencePass
from ..patches.schedule import step_of
from ..patches.selection import Selection
from .cache import ReferenceCache, run_key

if TYPE_CHECKING:
    from comfy.samplers import CFGGuider

    from .settings import RefDropSettings

KEY = "refattention.refdrop"
Roles = tuple[str | None, ...]


class ReferenceReader:
    """What one run sees of a reference.

    Args:
        settings: of the node that the reference belongs to.
        reference: its reference.
        guider, sigmas: of the run.
        attentions: of the model.

    Attributes:
        held: how many numbers one look at it leaves on the device.
    """

    def __init__(
        self,
        settings: RefDropSettings,
        reference: Reference,
        guider: CFGGuider,
        sigmas: Tensor,
        attentions: Attentions,
    ) -> None:
        self.reference = reference
        self._passes = ReferencePass(reference, guider.conds, KEY, attentions.of_picture)
        self._settings = settings
        self.held = self._passes.held(attentions, settings.blocks, guider, settings.share_conditional)
        self._sigmas = sigmas.cpu()
        self._attentions = attentions
        self._selection = Selection(settings.reference_mask)
        self._key: Hashable = None
        if settings.cache is not None:
            self._key = run_key(guider.model_patcher, guider.model_options, self._passes.prompts, KEY)
            settings.cache.begin(self._key, follows_prompt=reference.positive is None)
        # By device, because ComfyUI may run the halves side by side: interval and roles, and what was seen at them
        self._latest: dict[torch.device, tuple[tuple[int, Roles], KeyValueBank]] = {}

    @property
    def latents(self) -> Tensor:
        """What passes through the model to read it."""
        return self._passes.latents

    @property
    def prompts_each(self) -> int:
        """How many pictures of the batch it is read for, each with a prompt of its own."""
        return self._passes.prompts_each

    @property
    def own_prompts(self) -> list[Cond]:
        """The reference's own conditioning."""
        return self._passes.own_prompts

    def look(self, asked: Asked) -> KeyValueBank:
        """The reference's keys and values for an evaluation, from a pass of it only if there is no other way."""
        roles: Roles = tuple(self._passes.conditionings.roles(asked.conds))
        device, every = asked.sigma.device, self._settings.reference_every
        here = (step_of(asked.level, self._sigmas) // every, roles) if every > 1 else None
        # Taken out: the next pass must not find the memory of the last one occupied.
        seen_at, bank = self._latest.pop(device, (None, None))
        if bank is None or seen_at != here:
            del bank
            bank = self._seen_here(asked, roles)
        if here is not None:
            self._latest[device] = here, bank
        return bank

    def close(self) -> None:
        """Frees what the reference's own conditioning holds, and reports."""
        self._passes.close()
        if self._settings.cache is not None:
            self._settings.cache.report()

    def _seen_here(self, asked: Asked, roles: Roles) -> KeyValueBank:
        """Keys and values at the noise level of the evaluation itself, from the cache as far as it has them."""
        names = self._passes.conditionings
        # What another node made for this evaluation has no role, and nothing tells whether it will be the same again.
        is_known = all((role is None) == (entries is None) for role, entries in zip(roles, asked.conds, strict=True))
        cache = self._settings.cache if is_known and self._key is not None else None
        place = (asked.level, roles)
        bank = cache.get(self._key, place, names.by_uuid) if cache else None
        if bank is None:
            recording = self._pass(asked, roles, self._settings.blocks, cache)
            bank = recording.bank
            if cache and recording.is_complete:
                bank = cache.rounded(bank)
                cache.put(self._key, place, bank, names.by_place)
        elif cache and bank.dropped:
            bank.add(cache.rounded(self._pass(asked, roles, bank.dropped).bank), lambda chunk: chunk)
        return bank

    def _pass(
        self, asked: Asked, roles: Roles, blocks: frozenset[Block], cache: ReferenceCache | None = None
    ) -> Recording:
        settings = self._settings
        recording = Recording(
            self._passes, blocks, self._attentions, "RefDrop", self._selection, settings.share_conditional
        )

        def see() -> Recording:
            self._passes.run(asked, recording, self._halves(asked.conds, roles))
            return recording

        return see() if cache is None else cache.passed(see, asked.sigma.device)

    def _halves(self, conds: list[list[Cond] | None], roles: Roles) -> list[list[Cond] | None]:
        """The halves to read: all of the evaluation, or the conditional one alone where all share it."""
        if not self._settings.share_conditional or "positive" not in roles:
            return conds
        return [entries if role == "positive" else None for entries, role in zip(conds, roles, strict=True)]
