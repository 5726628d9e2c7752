"""State of one sampling run, and of one evaluation of the model in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ..patches.blocks import Block
from ..patches.self_attention import SelfAttentionCall
from ..patches.unet import self_attention_layers
from .reference import KEY, Reference
from .tokens import FeatureCache, ReferenceTokens

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher

Looks = dict[Reference, ReferenceTokens]
Observer = Callable[[SelfAttentionCall, BasicTransformerBlock, list[Tensor]], None]


class LeffaRun:
    """One sampling run: what the references contribute at the timestep that is current for them.

    Args:
        interval: for how many steps one look at the references is used; 0 means all.
    """

    def __init__(self, interval: int) -> None:
        self._interval = interval
        # By device, because the host may run the halves side by side: the timestep, and what was seen at it
        self._seen: dict[torch.device, tuple[float, Looks]] = {}

    def look(self, model: BaseModel, references: Sequence[Reference], sigma: Tensor, schedule: Tensor) -> Looks:
        """What the references of an evaluation contribute to it.

        Args:
            model: the generative model that is about to run; its patcher has the reference U-Net of its device.
            references: of each row of the batch.
            sigma: (1,), noise level of the evaluation.
            schedule: (N + 1,), the run's noise levels, ending in 0.
        """
        timestep = model.model_sampling.timestep(self._reference_sigma(sigma, schedule))
        seen_at, looks = self._seen.get(sigma.device, (None, {}))
        if seen_at != timestep.item():
            looks = {}
            self._seen[sigma.device] = timestep.item(), looks
        missing = [one for one in dict.fromkeys(references) if one not in looks]
        for reference, features in self._features(model.current_patcher, missing, timestep):
            looks[reference] = ReferenceTokens(features, keep=self._interval != 1)
        return {reference: looks[reference] for reference in references}

    def _reference_sigma(self, sigma: Tensor, schedule: Tensor) -> Tensor:
        """The noise level at which the reference is looked at: in the middle of the steps that share a look."""
        if self._interval == 1:
            return sigma
        steps = max(len(schedule) - 1, 1)
        interval = self._interval or steps
        step = int((schedule[1:steps] >= sigma * (1 - 1e-6)).sum())
        first = step - step % interval
        return schedule[first + min(interval, steps - first) // 2].reshape(1).to(sigma)

    def _features(
        self, patcher: ModelPatcher, references: list[Reference], timestep: Tensor
    ) -> list[tuple[Reference, list[Tensor]]]:
        """Runs the reference U-Net, references of one size together; the zeros only if no earlier run left them."""
        (reference_unet,) = patcher.get_additional_models_with_key(KEY)
        cache: FeatureCache = patcher.get_attachment(KEY)
        found = []
        by_size: dict[torch.Size, list[Reference]] = {}
        for reference in references:
            kind = self._kind(reference_unet, reference)
            features = cache.get(kind, timestep.item(), timestep.device) if reference.is_zero else None
            if features is None:
                by_size.setdefault(reference.latent.shape, []).append(reference)
            else:
                found.append((reference, features))
        for group in by_size.values():
            latents = torch.stack([reference.latent for reference in group]).to(timestep.device)
            batched = reference_unet.model.features(latents, timestep)
            for row, reference in enumerate(group):
                features = [feature[row : row + 1] for feature in batched]
                found.append((reference, features))
                if reference.is_zero:
                    cache.put(self._kind(reference_unet, reference), timestep.item(), features)
        return found

    @staticmethod
    def _kind(reference_unet: ModelPatcher, reference: Reference) -> tuple[object, ...]:
        dtype = reference_unet.model.get_dtype_inference()
        return reference_unet.patches_uuid, tuple(reference.latent.shape), dtype


class Attending:
    """One forward pass: each self-attention of the generative U-Net looks at the references as well.

    Args:
        rows: the reference of each row of the batch.
        looks: what each reference contributes.
        observe: is shown each self-attention with the keys (1, M, C) of the reference of each row.
    """

    def __init__(
        self, unet: UNetModel, rows: Sequence[Reference], looks: Looks, observe: Observer | None = None
    ) -> None:
        self._observe = observe
        self._layers: dict[tuple[Block, int], tuple[int, BasicTransformerBlock]] = {
            place: (number, layer) for number, (place, layer) in enumerate(self_attention_layers(unet).items())
        }
        self._rows = rows
        self._looks = looks

    def handle(self, call: SelfAttentionCall) -> Tensor:
        """Attention of the samples' own queries to [own; reference] keys and values."""
        if call.q.shape[0] != len(self._rows):
            raise RuntimeError(
                f"Leffa: another patch changed the batch of {len(self._rows)} samples to {call.q.shape[0]} inside a "
                "self-attention (HyperTile does). Remove that patch."
            )
        number, layer = self._layers[call.block, call.depth]
        pairs = {one: tokens.keys_values(number, layer.attn1) for one, tokens in self._looks.items()}
        keys, values = ([pairs[row][part] for row in self._rows] for part in (0, 1))
        if self._observe is not None:
            self._observe(call, layer, keys)
        return call.attend(call.q, _joined(call.k, keys), _joined(call.v, values))


def _joined(own: Tensor, references: list[Tensor]) -> Tensor:
    """(B, N, C) and B times (1, M, C) -> (B, N + M, C), in one copy."""
    tokens = own.shape[1]
    joined = own.new_empty(own.shape[0], tokens + references[0].shape[1], own.shape[2])
    joined[:, :tokens] = own
    for row, reference in enumerate(references):
        joined[row, tokens:] = reference[0]
    return joined
