"""What a file must know of the model that its numbers were computed with: its weights, and the LoRAs on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from .base import evenly, fingerprint

if TYPE_CHECKING:
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
