"""What the reference U-Net gives: features by reference and timestep, and keys and values made of them."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from comfy.ldm.modules.attention import CrossAttention
from torch import Tensor

from ..patches.memory import has_room
from ..patches.transfer import Arriving, kept_tensor


class ReferenceTokens:
    """One reference at one timestep.

    Args:
        features: (1, M, C) for each transformer layer, in the order they run.
        keep: whether several steps use them: then keys and values stay, instead of the features they are made of.
    """

    def __init__(self, features: list[Tensor], keep: bool) -> None:
        self._features: list[Tensor | None] = list(features)
        self._keep = keep
        self._projected: dict[int, tuple[Tensor, Tensor]] = {}

    def keys_values(self, layer: int, attention: CrossAttention) -> tuple[Tensor, Tensor]:
        """(1, M, C) keys and values, by the projections of the generative U-Net's own self-attention."""
        if layer in self._projected:
            return self._projected[layer]
        feature = self._features[layer]
        pair = attention.to_k(feature), attention.to_v(feature)
        if self._keep:
            self._projected[layer] = pair
            self._features[layer] = None
        return pair


class FeatureCache:
    """Features of the reference of zeros, which depend on timestep and size only; they outlive a sampling run.

    Belongs to a loaded model and is filled up to a budget. Then it keeps what it has, because a run asks for the
    timesteps in a circle; features for another size or precision make room.

    Args:
        budget: bytes.
        device: where they are kept.
    """

    def __init__(self, budget: int, device: torch.device) -> None:
        self._budget = budget
        self._device = device
        self._kind: Hashable = None
        self._features: dict[Hashable, list[Tensor]] = {}
        self._bytes = 0

    def get(self, kind: Hashable, timestep: Hashable, device: torch.device) -> list[Tensor] | None:
        """The features for a timestep on a device, None if they are not there."""
        features = self._features.get(timestep) if kind == self._kind else None
        return None if features is None else Arriving(features, device).tensors()

    def put(self, kind: Hashable, timestep: Hashable, features: list[Tensor]) -> None:
        """Keeps features if there is room for them."""
        if kind != self._kind:
            self._kind, self._features, self._bytes = kind, {}, 0
        size = sum(feature.numel() * feature.element_size() for feature in features)
        if timestep not in self._features and self._bytes + size <= self._budget and has_room(size):
            # Copies: a feature may be a view of a larger batch.
            self._features[timestep] = [self._copy(feature) for feature in features]
            self._bytes += size

    def _copy(self, feature: Tensor) -> Tensor:
        is_leaving = self._device.type == "cpu" != feature.device.type
        return kept_tensor(feature) if is_leaving else feature.to(self._device, copy=True)
