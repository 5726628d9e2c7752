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
from .cache import NotComparable, ReferenceCache, run_key, structure

if TYPE_CHECKING:
    from comfy.samplers import CFGGuider

    from .settings import RefDropSettings

KEY = "refattention.refdrop"
Roles = tuple[str | None, ...]
PATCHES = ("patches", "patches_replace", "optimized_attention_override")  # in transformer_options


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
        # By device, because ComfyUI may run the halves side by side, and kind: the interval, and what was seen in it
        self._latest: dict[tuple[torch.device, Hashable], tuple[int, KeyValueBank]] = {}

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
        # What another node made for this evaluation has no role, and nothing tells whether it will be the same again.
        is_known = all((role is None) == (entries is None) for role, entries in zip(roles, asked.conds, strict=True))
        kind = (roles, _patched(asked)) if is_known else None
        every = self._settings.reference_every
        if every == 1 or kind is None:
            return self._seen_here(asked, roles, kind)
        here, device = step_of(asked.level, self._sigmas) // every, asked.sigma.device
        # Dropped before: the next pass must not find the memory of the last ones occupied.
        for place in [place for place, (seen_at, _) in self._latest.items() if place[0] == device and seen_at != here]:
            del self._latest[place]
        if (device, kind) not in self._latest:
            self._latest[device, kind] = here, self._seen_here(asked, roles, kind)
        return self._latest[device, kind][1]

    def close(self) -> None:
        """Frees what the reference's own conditioning holds, and reports."""
        self._passes.close()
        if self._settings.cache is not None:
            self._settings.cache.report()

    def _seen_here(self, asked: Asked, roles: Roles, kind: Hashable | None) -> KeyValueBank:
        """Keys and values at the noise level of the evaluation itself, from the cache as far as it has them.

        Args:
            asked: the evaluation.
            roles: of its conditionings.
            kind: tells it from others at its noise level; None where nothing does.
        """
        names = self._passes.conditionings
        cache = self._settings.cache if kind is not None and self._key is not None else None
        place = (asked.level, kind)
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


def _patched(asked: Asked) -> Hashable:
    """What is patched into the model for an evaluation: some nodes evaluate a prompt again with other patches."""
    try:
        return structure({name: asked.options.get(name) for name in PATCHES})
    except NotComparable:
        return object()  # equal to no other
