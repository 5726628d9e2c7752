"""State of one sampling run, and of one evaluation of the model in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...blocks import Block
from ...kernels.attention import Branch, reference_feature_guidance
from ...kernels.masks import token_weights
from ..reference_pass import KeyValueBank, ReferencePass, select_tokens
from ..self_attention import SelfAttentionCall
from ..unet import self_attention_blocks
from .guide import Guide

if TYPE_CHECKING:
    from comfy.samplers import CFGGuider


class RefDropRun:
    """One sampling run: the guides, and what is computed once for all steps."""

    def __init__(self, guides: tuple[Guide, ...], guider: CFGGuider, noise_shape: torch.Size) -> None:
        _check_batch(guides, noise_shape[0])
        sampling = guider.model_patcher.get_model_object("model_sampling")
        self.guides = guides
        self.layers: dict[Block, int] = self_attention_blocks(guider.model_patcher.model.diffusion_model)
        self.latent_size = tuple(noise_shape[-2:])
        self._sigmas = {
            guide: (sampling.percent_to_sigma(guide.start_percent), sampling.percent_to_sigma(guide.end_percent))
            for guide in guides
        }
        self.passes = {
            guide: ReferencePass(guide.reference, guider.conds) for guide in guides if guide.reference is not None
        }
        self.has_guided = False
        self._weights: dict[tuple[Guide, tuple[int, int], torch.device], Tensor] = {}

    def active(self, sigma: float) -> list[Guide]:
        """The guides whose part of the schedule `sigma` belongs to."""
        return [guide for guide in self.guides if self._sigmas[guide][0] >= sigma >= self._sigmas[guide][1]]

    def weight(self, guide: Guide, call: SelfAttentionCall) -> float | Tensor:
        """Strength for each token: a float, or (1 or B, N, 1) with a region mask."""
        if guide.mask is None:
            return guide.strength
        if call.q.shape[1] != call.grid[0] * call.grid[1]:
            raise RuntimeError(
                f"RefDropApply: the mask needs the {call.grid[0]} x {call.grid[1]} tokens of block {call.block}, but "
                f"another patch left {call.q.shape[1]} of them. Remove token merging or tiling, or the mask."
            )
        key = (guide, call.grid, call.q.device)
        if key not in self._weights:
            self._weights[key] = guide.strength * token_weights(guide.mask.float(), call.grid).to(call.q.device)
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
                "RefDropApply: a mask cannot be combined with prompts that are limited to an area, because the model "
                "sees only a part of the picture. Limit the prompts with masks instead of areas."
            )

    def check_effect(self) -> None:
        """Refuses to go on without effect. Later evaluations may be meant to lack the guided layers (PAG)."""
        if self._forward_passes and not self._run.has_guided:
            raise RuntimeError(
                "RefDropApply had no effect: another patch of this model replaces the self-attention of all chosen "
                "blocks. Remove that patch, or choose other blocks."
            )

    def handle(self, call: SelfAttentionCall) -> Tensor:
        """Computes one self-attention, guided where its block is chosen."""
        branches = [b for guide in self._guides if call.block in guide.blocks for b in self._branches(guide, call)]
        if not branches:
            return call.attend(call.q, call.k, call.v)
        self._run.has_guided = True
        return reference_feature_guidance(call.attend, call.q, call.k, call.v, len(call.chunks), branches)

    def _branches(self, guide: Guide, call: SelfAttentionCall) -> list[Branch]:
        first = 0 if guide.reference is not None else guide.batch_references
        weight = self._run.weight(guide, call)
        if isinstance(weight, Tensor) and len(weight) > 1:
            weight = weight[first:]
        if (first or guide.concat) and call.q.shape[0] != call.k.shape[0]:
            raise RuntimeError(
                "RefDropApply: another patch (HyperTile?) cuts the queries into tiles, which works only with a "
                "reference_latent and in mode rfg. Remove that patch."
            )
        pairs = self._keys_values(guide, call)
        if guide.concat:
            pairs = [(torch.cat([keys for keys, _ in pairs], dim=1), torch.cat([values for _, values in pairs], dim=1))]
        return [Branch(weight, keys, values, first, guide.concat) for keys, values in pairs]

    def _keys_values(self, guide: Guide, call: SelfAttentionCall) -> list[tuple[Tensor, Tensor]]:
        """(G, M, C) keys and values of each reference, on the device of the call."""
        if guide in self._banks:
            return self._banks[guide].keys_values((call.block, call.depth), call.chunks, call.k.device)
        keys, values = (t.unflatten(0, (len(call.chunks), -1))[:, : guide.batch_references] for t in (call.k, call.v))
        return select_tokens(guide.reference_mask, call.grid, keys, values)


def _check_batch(guides: tuple[Guide, ...], batch: int) -> None:
    for guide in guides:
        if guide.reference is None and guide.batch_references >= batch:
            raise ValueError(
                f"RefDropApply has no reference: reference_latent is not connected, and with batch_references = "
                f"{guide.batch_references} a batch of {batch} leaves nothing to guide. Connect reference_latent, or "
                f"sample a batch of at least {guide.batch_references + 1}."
            )
        if guide.mask is not None and len(guide.mask) not in (1, batch):
            raise ValueError(
                f"RefDropApply: mask holds {len(guide.mask)} masks for a batch of {batch}. "
                "Give one mask for all samples, or one for each."
            )
