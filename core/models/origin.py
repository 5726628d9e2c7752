"""What a file must know of the model that its numbers were computed with: its weights, and the LoRAs on them."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from comfy.hooks import EnumHookType
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ..patches.conditionings import Cond
from .base import evenly, fingerprint

if TYPE_CHECKING:
    from comfy.hooks import WeightHook
    from comfy.model_patcher import ModelPatcher

PLAIN = (str, bool, int, float, type(None))


class NotTellable(Exception):
    """A model whose weights, or what another node does to them, cannot be told again in another process."""


@dataclass(frozen=True)
class Origin:
    """Weights and LoRAs of a model, named in a way that is the same in every process.

    Attributes:
        base: fingerprint of its weights without LoRAs, for `is_of`, which allows for other precisions.
        patches: digest of the LoRAs and other patches of weights, with their strengths; "" if there are none.
    """

    base: str
    patches: str

    @classmethod
    def of(cls, model: ModelPatcher) -> Origin:
        """The origin of what a model computes.

        Raises:
            NotTellable: see there.
        """
        if model.injections:  # LoRAs beside the weights; what they hold is known to their node only
            raise NotTellable
        try:
            base = fingerprint(model)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise NotTellable from error  # weights in a format of another pack
        return cls(base, _digest(model.patches) if model.patches else "")


def brought(model: ModelPatcher, prompts: Mapping[str, Sequence[Cond]]) -> dict[str, list[str]]:
    """Digests of the LoRAs that the prompts of a run bring (hooks), by the prompts' role.

    Args:
        model: that runs; ComfyUI has registered the LoRAs on it.
        prompts: the sampler's conditionings by their role: "positive", "negative", ...
    """
    hooks = {role: {hook for entry in some for hook in _weight_hooks(entry)} for role, some in prompts.items()}
    # Both prompts often bring the same, whose weights are read once.
    digests = {hook: _digest_of(hook, model) for hook in set().union(*hooks.values())}
    return {role: sorted(digests[hook] for hook in some) for role, some in hooks.items()}


def _weight_hooks(entry: Cond) -> list[WeightHook]:
    group = entry.get("hooks")
    return [] if group is None else list(group.get_type(EnumHookType.Weight))


def _digest_of(hook: WeightHook, model: ModelPatcher) -> str:
    frames = [(each.start_percent, each.strength, each.guarantee_steps) for each in hook.hook_keyframe.keyframes]
    try:
        return _digest({"patches": model.hook_patches.get(hook.hook_ref, {}), "keyframes": frames})
    except NotTellable:
        return str(uuid.uuid4())  # equal to no other


def _digest(patches: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for part in _parts(patches):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    """What tells a patch from another: names, strengths, functions by their name, and some numbers of each tensor."""
    if isinstance(value, Tensor):
        chosen = evenly(value.detach()).cpu().to(torch.float32)
        yield f"tensor {tuple(value.shape)}".encode()
        yield chosen.numpy().tobytes()
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for key in sorted(value):
            yield from _parts(key)
            yield from _parts(value[key])
    elif isinstance(value, (list, tuple)):
        yield f"list {len(value)}".encode()
        for each in value:
            yield from _parts(each)
    elif isinstance(value, PLAIN):
        yield repr(value).encode()
    elif isinstance(value, WeightAdapterBase):
        yield type(value).__name__.encode()
        yield from _parts(value.weights)
    elif callable(value) and hasattr(value, "__qualname__"):
        yield f"{value.__module__}.{value.__qualname__}".encode()
    else:
        raise NotTellable
