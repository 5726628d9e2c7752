"""State of one sampling run, and of one evaluation of the model in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..kernels.masks import token_weights
from ..patches.bank import KeyValueBank, select_tokens
from ..patches.families import attentions_of
from ..patches.roles import Roles
from ..patches.self_attention import SelfAttentionCall
from .kernel import Branch, reference_feature_guidance
from .reading import ReferenceReading
from .settings import Guide

if TYPE_CHECKING:
    from comfy.samplers import CFGGuider


class RefDropRun:
    """One sampling run: the guides, and what is computed once for all steps.

    Args:
        guider, noise_shape, sigmas: of the run.
        own: key of the method in transformer_options.
    """

    def __init__(
        self, guides: tuple[Guide, ...], guider: CFGGuider, noise_shape: torch.Size, sigmas: Tensor, own: str
    ) -> None:
        self.attentions = attentions_of(guider.model_patcher, "RefDrop")
        # A video's frames are tokens of one sample where latents are (B, C, F, H, W).
        self.frames = noise_shape[2] if self.attentions.is_video and len(noise_shape) == 5 else 1
        _check_batch(guides, noise_shape[0], self.frames)
        for guide in guides:
            if guide.recorded is not None:  # once more, because patches may have come after the guide
                guide.recorded.check(guider.model_patcher, guide.blocks)
        sampling = guider.model_patcher.get_model_object("model_sampling")
        self.guides = guides
        self.latent_size = tuple(noise_shape[-2:])
        self._sigmas = {
            guide: (sampling.percent_to_sigma(guide.start_percent), sampling.percent_to_sigma(guide.end_percent))
            for guide in guides
        }
        self.readings = {
            guide: ReferenceReading(guide, guide.reference, guider, sigmas, self.attentions, own)
            for guide in guides
            if guide.reference is not None
        }
        self._names = Roles(guider.conds)
        self.has_guided = False
        self._weights: dict[tuple[Guide, tuple[int, int], torch.device], Tensor] = {}

    def active(self, sigma: float) -> list[Guide]:
        """The guides whose part of the schedule `sigma` belongs to."""
        return [guide for guide in self.guides if self._sigmas[guide][0] >= sigma >= self._sigmas[guide][1]]

    def recorded(self, guides: list[Guide], conds: list[Any], sigma: Tensor) -> dict[Guide, KeyValueBank]:
        """Of the guides by an earlier run, what that run saw at the noise level (1,) of an evaluation."""
        return {
            guide: guide.recorded.look(sigma, conds, self._names, guide.share_halves)
            for guide in guides
            if guide.recorded is not None
        }

    def weight(self, guide: Guide, call: SelfAttentionCall) -> float | Tensor:
        """Strength for each token: a float, or (1 or B, N, 1) where it is not the same for all."""
        leading = guide.batch_references if guide.is_from_batch and self.frames > 1 else 0
        if guide.mask is None and not leading:
            return guide.strength
        if call.q.shape[1] != call.frames * call.grid[0] * call.grid[1]:
            raise RuntimeError(
                f"RefDrop: the mask needs the {call.grid[0]} x {call.grid[1]} tokens of block {call.block}, but "
                f"another patch left {call.q.shape[1]} of them. Remove token merging or tiling, or the mask."
            )
        key = (guide, call.grid, call.q.device)
        if key not in self._weights:
            mask = torch.ones(1, 1, 1) if guide.mask is None else guide.mask.float()
            weights = token_weights(mask, call.grid).repeat(1, call.frames, 1)
            weights[:, : leading * call.grid[0] * call.grid[1]] = 0
            self._weights[key] = guide.strength * weights.to(call.q.device)
        return self._weights[key].to(call.q.dtype)


class Guiding:
    """One evaluation of the sampler: the active guides with their references' keys and values."""

    def __init__(self, run: RefDropRun, guides: list[Guide], banks: dict[Guide, KeyValueBank]) -> None:
        self._run = run
        self._guides = guides
        self._banks = banks
        self._forward_passes = 0

    def begin(self, x: Tensor) -> None:
        """Counts a forward pass; refuses a part of the picture where a mask over the whole picture is to be used."""
        self._forward_passes += 1
        if tuple(x.shape[-2:]) != self._run.latent_size and any(guide.mask is not None for guide in self._guides):
            raise RuntimeError(
                "RefDrop: a mask cannot be combined with prompts that are limited to an area, because the model "
                "sees only a part of the picture. Limit the prompts with masks instead of areas."
            )

    def check_effect(self) -> None:
        """Refuses to go on without effect. Later evaluations may be meant to lack the guided layers (PAG)."""
        if self._forward_passes and not self._run.has_guided:
            raise RuntimeError(
                "RefDrop had no effect: another patch of this model replaces the self-attention of all chosen "
                "blocks. Remove that patch, or choose other blocks."
            )

    def handle(self, call: SelfAttentionCall) -> Tensor:
        """Computes one self-attention, guided where its block is chosen."""
        branches = [b for guide in self._guides if call.block in guide.blocks for b in self._branches(guide, call)]
        if not branches:
            return call.plain()
        self._run.has_guided = True
        joint = None if call.joint is None else call.joint()
        return reference_feature_guidance(call.attend, call.q, call.k, call.v, len(call.chunks), branches, joint)

    def _branches(self, guide: Guide, call: SelfAttentionCall) -> list[Branch]:
        first = guide.batch_references if guide.is_from_batch and self._run.frames == 1 else 0
        weight = self._run.weight(guide, call)
        if isinstance(weight, Tensor) and len(weight) > 1:
            weight = weight[first:]
        if (guide.is_from_batch or guide.concat) and call.q.shape[0] != call.k.shape[0]:
            raise RuntimeError(
                "RefDrop: another patch (HyperTile?) cuts the queries into tiles, which works only with a "
                "reference_latent and in mode rfg. Remove that patch."
            )
        pairs = self._keys_values(guide, call)
        if guide.concat:
            keys, values = (torch.cat(tokens, dim=-2) for tokens in zip(*pairs, strict=True))
            pairs = [(keys, values)]
        return [Branch(weight, keys, values, first, guide.concat) for keys, values in pairs]

    def _keys_values(self, guide: Guide, call: SelfAttentionCall) -> list[tuple[Tensor, Tensor]]:
        """(G, M, C) keys and values of each reference, on the device of the call; (G, B, M, C) of a video's frames."""
        if guide in self._banks:
            layer = (call.block, call.depth)
            pairs = self._banks[guide].keys_values(layer, call.chunks, call.k)
            if guide.recorded is None or guide.reference_mask is None:
                return pairs
            keys, values = (torch.stack(tensors, dim=1) for tensors in zip(*pairs, strict=True))
            return select_tokens(guide.reference_mask, self._banks[guide].grid(layer), keys, values)
        chunks, references = len(call.chunks), guide.batch_references
        if self._run.frames == 1:
            keys, values = (t.unflatten(0, (chunks, -1))[:, :references] for t in (call.k, call.v))
            return select_tokens(guide.reference_mask, call.grid, keys, values)
        keys, values = (t.unflatten(1, (self._run.frames, -1))[:, :references] for t in (call.k, call.v))
        pairs = select_tokens(guide.reference_mask, call.grid, keys, values)
        return [(keys.unflatten(0, (chunks, -1)), values.unflatten(0, (chunks, -1))) for keys, values in pairs]


def _check_batch(guides: tuple[Guide, ...], batch: int, frames: int) -> None:
    there = f"a batch of {batch}" if frames == 1 else f"a video of {frames} frames"
    for guide in guides:
        if guide.is_from_batch and guide.batch_references >= (batch if frames == 1 else frames):
            raise ValueError(
                f"RefDrop has no reference: reference_latent is not connected, and with batch_references = "
                f"{guide.batch_references} {there} leaves nothing to guide. Connect reference_latent, or sample at "
                f"least {guide.batch_references + 1}."
            )
        if guide.mask is not None and len(guide.mask) not in (1, batch):
            raise ValueError(
                f"RefDrop: mask holds {len(guide.mask)} masks for a batch of {batch}. "
                "Give one mask for all samples, or one for each."
            )
