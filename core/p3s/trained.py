"""The injection of what a trained adapter reads."""

from __future__ import annotations

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ..patches.attention import AttentionCall, Options, with_patches
from ..patches.unet import self_attention_layers
from .features import FeaturesOf
from .injection import EVERYWHERE, Tokens
from .kernel import nonzero_tokens, on_grid


class ReadByAdapter:
    """What the adapter's network read, through the projections of the frozen layers.

    Args:
        features: of one forward pass.
        unet: the frozen U-Net.
        identity_at_zero: leaves tokens of zeros out.
    """

    def __init__(self, features: FeaturesOf, unet: UNetModel, identity_at_zero: bool) -> None:
        self._features = features
        self._layers = self_attention_layers(unet)
        self._identity_at_zero = identity_at_zero

    def keys_values(self, call: AttentionCall, chunks: list[int]) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Projects f."""
        features, attention = self._features[call.layer], self._layers[call.layer].attn1
        hidden = features.hidden.unflatten(0, (len(call.chunks), -1))
        if len(chunks) < len(hidden):
            hidden = hidden[chunks]
        return attention.to_k(hidden), attention.to_v(hidden), features.grid

    def used(self, call: AttentionCall) -> Tensor | None:
        """Those that are not zero, if so chosen."""
        return nonzero_tokens(self._features[call.layer].hidden) if self._identity_at_zero else None


def with_cross(
    options: Options,
    features: FeaturesOf,
    epsilon: float,
    region: Tokens = EVERYWHERE,
    without: frozenset[int] = frozenset(),
) -> Options:
    """Copies `transformer_options` so that the copy's cross-attention features are added to each cross-attention.

    Args:
        region: which tokens of the picture they are added to.
        without: numbers of the conditionings that get none.
    """

    def add(n: Tensor, extra_options: Options) -> Tensor:
        height, width = extra_options["activations_shape"][-2:]
        read = features[extra_options["block"], extra_options["block_index"]]
        added = epsilon * on_grid(read.cross, read.grid, (height, width))
        if (tokens := region.tokens((height, width), n.device)) is not None:
            added = torch.zeros_like(added).index_copy(1, tokens, added[:, tokens])
        halves = extra_options["cond_or_uncond"]
        if not without.isdisjoint(halves):
            kept = torch.tensor([half not in without for half in halves], device=n.device)
            added = added * kept.repeat_interleave(len(added) // len(halves))[:, None, None]
        # Of a half's pictures, which lie one after the other, or of each one
        return (n.unflatten(0, (len(added), -1)) + added.unsqueeze(1)).flatten(0, 1)

    return with_patches(options, "attn2_output_patch", add)
