"""Keys and values of references that outlive a sampling run, so that the next run need not read them again."""

from __future__ import annotations

import hashlib
import logging
import weakref
from collections.abc import Callable, Hashable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import comfy.model_management as management
import torch
from torch import Tensor

from ..patches import transfer
from ..patches.bank import KeyValueBank, Rename
from ..patches.blocks import Block, Layer
from ..patches.conditionings import Cond
from ..patches.node_text import Show, nowhere
from ..patches.transfer import Arriving, kept_tensor

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from ..patches.reference_pass import Recording

log = logging.getLogger(__name__)
MIB = 2**20
FREE_SHARE = 3  # of the free main memory, one part may be used
REMEMBERED_RUNS = 4  # two stages of one picture are two runs, each with noise levels of its own
PROMPT_CHANGED = " The prompt changed, so it was looked at anew: reference_positive, if connected, avoids that."
PLAIN = (str, bytes, int, float, bool, type(None), torch.dtype, torch.device)


class ReferenceCache:
    """What the references of one node gave at each noise level, on the CPU, up to a budget.

    A node has one cache, so the reference, its seed, its mask and the blocks are the same for all that is in it. All
    else that a pass depends on, but for its place (noise level and halves), is its key; of another key nothing is kept.
    When the budget is spent, noise levels that the last runs did not ask for are dropped (another schedule asked for
    them); then the others give up their first blocks for a further one: to see these again takes the beginning of a
    pass only. Where that is not enough the cache keeps what it has, because a run asks for the noise levels in the same
    order each time; the others are passed again.

    To bring what is kept to a device takes time as well. A run's second pass is timed (the first one warms up), and if
    bringing it takes longer, nothing is kept.

    Args:
        budget: bytes; None is a part of the main memory that is free when a run begins.
        is_half: whether keys and values are kept in float16, which takes half the memory and rounds them.
        show: shows on the node how full it is, besides the log.
    """

    def __init__(self, budget: int | None, is_half: bool = False, show: Show = nowhere) -> None:
        self.budget = budget or 0
        self._is_automatic = budget is None
        self.is_half = is_half
        self._show = show
        self.size = 0
        self.hits = 0
        self._key: Hashable = None
        self._banks: dict[Hashable, KeyValueBank] = {}
        self._runs = 0
        self._asked_in: dict[Hashable, int] = {}  # the last run that asked for a place
        self._passes = 0
        self.pays = True
        self._weighed = ""
        self._advice = ""

    def begin(self, key: Hashable, follows_prompt: bool = False) -> None:
        """Begins a run; one of another key drops what there is.

        Args:
            key: from `run_key`.
            follows_prompt: whether the reference is read with the sampler's prompt.
        """
        self._advice = PROMPT_CHANGED if follows_prompt and _differ_in_prompts(key, self._key) else ""
        if key != self._key:
            self.clear()
            self._key = key
        self._runs += 1
        if self._is_automatic:
            self.budget = self.size + management.get_free_memory(torch.device("cpu")) // FREE_SHARE

    def get(self, key: Hashable, place: Hashable, rename: Rename) -> KeyValueBank | None:
        """The bank of a place in the schedule, which may lack some of the first blocks.

        `rename` gives the conditionings the names of this run.
        """
        bank = self._banks.get(place) if key == self._key else None
        self._asked_in[place] = self._runs
        if bank is None:
            return None
        self.hits += 1
        return bank.copied(rename)

    def put(self, key: Hashable, place: Hashable, bank: KeyValueBank, rename: Rename) -> None:
        """Keeps a bank if there is room for it; `rename` gives the conditionings names that hold for every run."""
        if key != self._key or place in self._banks or not self.pays:
            return
        share = 0.5 if self.is_half and bank.itemsize > 2 else 1.0
        first: frozenset[Block] = frozenset()
        if self.size + share * bank.size > self.budget:
            self._drop_old()
        if self.size + share * bank.size > self.budget:
            first = cheap_to_repeat(bank.sizes)
            if not first or not self._make_room(share * (bank.size - bank.size_of(first)), first):
                return
        kept = bank.copied(rename, lambda tensor: kept_tensor(tensor, self.is_half))
        kept.drop(first)
        self._banks[place] = kept
        self.size += kept.size

    def passed(self, see: Callable[[], Recording], device: torch.device) -> Recording:
        """What a pass gives, timed if it is the second one on a device with memory of its own."""
        self._passes += 1
        if self._passes != 2 or device.type == "cpu":
            return see()
        recording, seconds = transfer.timed(see)
        if recording.is_complete:
            self._weigh(recording.bank, seconds, device)
        return recording

    def _weigh(self, bank: KeyValueBank, seconds: float, device: torch.device) -> None:
        """Decides whether it pays to keep what a pass gives, by bringing one layer of it."""
        layer = max(bank.sizes, key=lambda layer: bank.sizes[layer])
        kept = [kept_tensor(part, self.is_half) for part in bank.parts(layer)]
        _, bringing = transfer.timed(lambda: Arriving(kept, device).tensors())
        bringing *= bank.size / bank.sizes[layer]
        self.pays = bringing <= seconds
        verdict = "" if self.pays else ", so it is passed each time"
        self._weighed = (
            f" A pass takes {1000 * seconds:.0f} ms, to bring what it gave {1000 * bringing:.0f} ms{verdict}."
        )
        if not self.pays:
            self._banks, self.size = {}, 0

    def rounded(self, bank: KeyValueBank) -> KeyValueBank:
        """A bank with the precision in which it would be kept, so that a picture is the same before and after."""
        if not self.is_half or bank.itemsize <= 2:
            return bank
        return bank.copied(lambda chunk: chunk, lambda tensor: tensor.half())

    def _drop_old(self) -> None:
        """Drops the noise levels that none of the last runs asked for."""
        for place in [place for place in self._banks if self._asked_in[place] <= self._runs - REMEMBERED_RUNS]:
            self.size -= self._banks.pop(place).size

    def _make_room(self, needed: float, first: frozenset[Block]) -> bool:
        """Drops the first blocks of as many noise levels as it takes; of none if it is not enough in all."""
        whole = [bank for bank in self._banks.values() if not bank.dropped]
        if self.size + needed - sum(bank.size_of(first) for bank in whole) > self.budget:
            return False
        for bank in whole:
            if self.size + needed > self.budget:
                self.size -= bank.size_of(first)
                bank.drop(first)
        return True

    def clear(self) -> None:
        """Drops everything."""
        self._key, self._banks, self._asked_in, self.size = None, {}, {}, 0
        self._passes, self.pays, self._weighed = 0, True, ""

    def report(self) -> None:
        """Tells the log and the user how full the cache is."""
        fill, kept = f"{self.size / MIB:.0f} of {self.budget / MIB:.0f} MiB", len(self._banks)
        text = f"{kept} looks at the reference kept ({fill}), {self.hits} of them used again so far."
        text += self._advice + self._weighed
        log.info("RefDrop: %s", text)
        self._show(text)


def cheap_to_repeat(sizes: Mapping[Layer, int]) -> frozenset[Block]:
    """The first blocks of a pass, as many as give most memory for the time it takes to see them again.

    None where all blocks give the same. Each layer is taken to need the same time.

    Args:
        sizes: of what is kept of each layer, in the order the layers run.
    """
    blocks = list(dict.fromkeys(block for block, _ in sizes))
    total = sum(sizes.values())

    def time_for_memory(first: frozenset[Block]) -> Fraction:
        inside = [size for (block, _), size in sizes.items() if block in first]
        return Fraction(len(inside) * total, len(sizes) * max(sum(inside), 1))

    beginnings = (frozenset(blocks[:end]) for end in range(len(blocks) - 1, 0, -1))
    best = min(beginnings, key=time_for_memory, default=frozenset())
    return best if best and time_for_memory(best) < 1 else frozenset()


class Identity:
    """An object that is equal to itself only, for as long as it lives."""

    def __init__(self, thing: Any) -> None:
        self._hash = id(thing)
        self._thing = weakref.ref(thing)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self._thing() is not None and self._thing() is other._thing()

    def __hash__(self) -> int:
        return self._hash


class NotComparable(Exception):
    """Something whose changes cannot be detected."""


def run_key(
    model: ModelPatcher, model_options: Mapping[str, Any], prompts: Mapping[str, list[Cond]], own: str
) -> Hashable:
    """Everything a reference pass depends on besides its node and its place; None if it cannot be told.

    Args:
        model: with its weight patches, object patches and wrappers.
        model_options: of the run.
        prompts: what the references are read with.
        own: key in transformer_options that does not count.
    """
    options = {**model_options, "transformer_options": {**model_options["transformer_options"], own: None}}
    try:
        return (
            Identity(model.model),
            model.patches_uuid,
            structure([options, model.wrappers, model.object_patches, model.injections]),
            _content(prompts),
        )
    except NotComparable:
        return None


def _differ_in_prompts(one: Hashable, other: Hashable) -> bool:
    """Whether the prompts, the last part of two keys, are all that differs."""
    return isinstance(one, tuple) and isinstance(other, tuple) and one != other and one[:-1] == other[:-1]


def weight_patches(model: ModelPatcher) -> Hashable:
    """The LoRAs and whatever else changes a model's weights in all of a run."""
    try:
        return structure(model.patches)
    except NotComparable:
        return model.patches_uuid


def _content(value: Any) -> Hashable:
    """A conditioning by its content."""
    if isinstance(value, Tensor):
        content = value.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy()
        return tuple(value.shape), value.dtype, hashlib.sha256(content.data).digest()
    if isinstance(value, Mapping):
        return frozenset((key, _content(each)) for key, each in value.items() if key != "uuid")
    if isinstance(value, (list, tuple)):
        return tuple(_content(each) for each in value)
    if isinstance(value, PLAIN):
        return value
    raise NotComparable


def structure(value: Any) -> Hashable:
    """Nested options by their structure, what they hold by identity."""
    if isinstance(value, Mapping):
        return frozenset((key, structure(each)) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(structure(each) for each in value)
    if isinstance(value, PLAIN):
        return value
    try:
        return Identity(value)
    except TypeError as error:  # not every built-in type can be told apart
        raise NotComparable from error
