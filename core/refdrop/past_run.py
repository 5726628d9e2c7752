"""Keys and values of a sampling run that later runs are guided by, recorded here or loaded from a file."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from ..models.base import is_of
from ..models.origin import NotTellable, Origin
from ..patches.attention import Chunk
from ..patches.bank import KeyValueBank
from ..patches.blocks import Block
from ..patches.conditionings import Cond, Conditionings
from ..patches.schedule import NoiseRange
from ..patches.unet import family
from .cache import structure, weight_patches

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

CLOSE = 1e-5  # relative difference of two noise levels that are the same but for rounding


class PastRun(list[Tensor]):
    """What one sampling run gave at each noise level, on the CPU.

    A list of its keys and values: where main memory gets short, ComfyUI drops what nodes gave, the largest first, and
    knows the size of tensors in lists only.

    Args:
        references: how many pictures of its batch, or frames of its video, are references.
        family: ComfyUI's name of the model's family.
        origin: its weights and LoRAs; None if they cannot be told in another process.

    Attributes:
        levels: noise level -> what its evaluations gave. The first number of each chunk is a place in `roles`.
        roles: "positive", "negative", ...
        schedule: sigmas of the run: where each step begins, and where the last one ends.
        sampling: how the run was sampled, for the user to read.
        brought: the LoRAs that its prompts brought, as `origin.brought` tells them.
    """

    def __init__(self, references: int, family: str, origin: Origin | None) -> None:
        super().__init__()
        self.references = references
        self.family = family
        self.origin = origin
        self.levels: dict[float, KeyValueBank] = {}
        self.roles: list[str] = []
        self.schedule: list[float] = []
        self.sampling = ""
        self.brought: dict[str, list[str]] = {}
        self._fits: object = None  # the last model that it was found to fit

    @property
    def size(self) -> int:
        """Bytes of all keys and values."""
        return sum(bank.size for bank in self.levels.values())

    def keep(self, sigma: float, bank: KeyValueBank, placed: Callable[[Chunk], Chunk]) -> None:
        """Adds what an evaluation gave at a noise level, its chunks under other names."""
        self.levels.setdefault(sigma, KeyValueBank("RefDrop Apply")).add(bank, placed)
        self.extend(bank.tensors)

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
        near = _nearest(level, self.levels)
        if near is None:
            raise self._other_schedule(level)
        bank, roles = self.levels[near], names.roles(conds)
        if not share_conditional:
            self._check_halves(bank, roles, conds)
        halves = [roles.index(role) if role in roles else -1 for role in self.roles]
        found = KeyValueBank("RefDrop Apply", share_conditional)
        found.add(bank, lambda chunk: names.by_uuid((halves[chunk[0]], chunk[1])))
        return found

    def check(self, model: ModelPatcher, blocks: frozenset[Block]) -> None:
        """Checks that a model may be guided by the recording in some of its blocks.

        Raises:
            ValueError: the recording was made with another model or other weights, or lacks one of the blocks.
        """
        self._check_model(model)
        recorded = {block for bank in self.levels.values() for block in bank.blocks}
        if missing := sorted(blocks - recorded):
            kind, number = missing[0]
            raise ValueError(
                f"cache lacks {len(missing)} of the chosen blocks, {kind}.{number} for example. Choose the same blocks "
                "in RefDrop Record and RefDrop Apply."
            )

    def check_schedule(self, sigmas: Tensor, where: NoiseRange) -> None:
        """Checks before the first step that a run asks for recorded noise levels only.

        Args:
            sigmas: (steps + 1,) of the run.
            where: the part of the schedule in which the recording acts.

        Raises:
            ValueError: one of its steps begins at a noise level that the recorded run did not have.
        """
        known = [*self.schedule[:-1], *self.levels]
        for level in sigmas[:-1].tolist():
            if level > 0 and level in where and _nearest(level, known) is None:
                raise self._other_schedule(level)

    def check_prompts(self, brought: Mapping[str, list[str]]) -> None:
        """Checks that the prompts of a run bring the LoRAs that those of the recorded run did.

        Raises:
            ValueError: they bring others.
        """
        for role in brought.keys() & self.roles:
            if brought[role] != self.brought.get(role, []):
                raise ValueError(
                    f"RefDrop Apply: the {role} prompt brings other LoRAs (Create Hook LoRA), or none, than the one "
                    "that cache was recorded with. Record with the same LoRAs."
                )

    def _check_model(self, model: ModelPatcher) -> None:
        if self.family != family(model):
            raise ValueError(
                f"cache was recorded with a {self.family} model, but the connected one is {family(model)}. "
                "Record with the model that is to be guided."
            )
        weights = weights_of(model)
        if weights == self._fits:
            return
        if other := self._other(model):
            raise ValueError(
                f"cache was recorded with {other} than the connected model has. Connect RefDrop Record and "
                "RefDrop Apply to the same output, or load the model and LoRAs that a loaded file was recorded with."
            )
        self._fits = weights

    def _other(self, model: ModelPatcher) -> str:
        """What a model of the family has that the recording was not made with, if anything."""
        found = origin_of(model)
        if found is not None and self.origin is not None:
            if not is_of(model, self.origin.base):
                return "another checkpoint"
            if found.patches == self.origin.patches:
                return ""
        return "other weights (a LoRA)"

    def _other_schedule(self, level: float) -> ValueError:
        range_ = f" from {max(self.levels):.4g} to {min(self.levels):.4g}" if self.levels else ""
        said = f" ({self.sampling})" if self.sampling else ""
        return ValueError(
            f"RefDrop Apply: the cache holds {len(self.levels)} noise levels{range_}{said}, but this sampler asks "
            f"for {level:.4g}. Record with the same sampler, scheduler, steps and denoise."
        )

    def _check_halves(self, bank: KeyValueBank, roles: list[str | None], conds: list[list[Cond] | None]) -> None:
        there = {self.roles[half] for half in bank.halves}
        for role, entries in zip(roles, conds, strict=True):
            if entries is not None and role not in there:
                raise ValueError(
                    f"RefDrop Apply: the cache has no recording of the {role or 'further'} prompt at this step. "
                    "Record with cfg above 1 and the same guidance nodes, or turn share_conditional on."
                )


def weights_of(model: ModelPatcher) -> Hashable:
    """What tells, in this process, whether two models have the same weights with the same LoRAs."""
    # Not the module, which ComfyUI may load anew, nor the number of its patches, which prompts with hooks change.
    return model.clone_base_uuid, weight_patches(model), structure(model.injections)


def origin_of(model: ModelPatcher) -> Origin | None:
    """Weights and LoRAs in a form that outlives the process, or None if there is none."""
    try:
        return Origin.of(model)
    except NotTellable:
        return None


def _nearest(level: float, known: Iterable[float]) -> float | None:
    """The noise level among those known that is the same but for rounding."""
    near = min(known, key=lambda each: abs(each - level), default=None)
    return near if near is not None and abs(near - level) <= CLOSE * level else None
