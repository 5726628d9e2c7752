"""The injection of what a trained adapter reads."""

from __future__ import annotations

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ..patches.attention import AttentionCall, Options, with_patches
from ..patches.blocks import Layer
from ..patches.selection import EVERYWHERE, Tokens
from ..patches.unet import self_attention_layers
from .features import FeaturesOf
from .kernel import is_nonzero, on_grid


class ReadByAdapter:
    """What the adapter's network read, through the projections of the frozen layers.

    Args:
        features: of one forward pass.
        unet: the frozen U-Net.
        identity_at_zero: leaves tokens of zeros out.
        subject: its tokens.
    """

    def __init__(
        self, features: FeaturesOf, unet: UNetModel, identity_at_zero: bool, subject: Tokens = EVERYWHERE
    ) -> None:
        self._features = features
        self._layers = self_attention_layers(unet)
        self._identity_at_zero = identity_at_zero
        self._subject = subject
        self._used: dict[Layer, Tensor | None] = {}

    def keys_values(self, call: AttentionCall, chunks: list[int]) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Projects f."""
        features, attention = self._features[call.layer], self._layers[call.layer].attn1
        hidden = features.hidden.unflatten(0, (len(call.chunks), -1))
        if len(chunks) < len(hidden):
            hidden = torch.stack([hidden[number] for number in chunks])
        return attention.to_k(hidden), attention.to_v(hidden), features.grid

    def used(self, call: AttentionCall) -> Tensor | None:
        """Those that are not zero, if so chosen."""
        if not self._identity_at_zero:
            return None
        if not self._used:
            self._used = used_tokens(self._features, self._subject)
        return self._used[call.layer]


def used_tokens(features: FeaturesOf, subject: Tokens) -> dict[Layer, Tensor | None]:
    """Which of the subject's tokens are not zero in each layer; None where all of them are not.

    For all layers together: to learn it is to wait for the device.
    """
    distinct = {id(each): each for each in features.values()}  # a layer of the copy feeds several
    flags = [is_nonzero(each.hidden) for each in distinct.values()]
    device, sizes = flags[0].device, [len(flag) for flag in flags]
    found: dict[int, Tensor] = {}
    for (key, each), nonzero in zip(distinct.items(), torch.cat(flags).cpu().split(sizes), strict=True):
        tokens = subject.on(each.grid, nonzero.device)
        used = nonzero.nonzero().squeeze(1) if tokens is None else tokens[nonzero[tokens]]
        if len(used) < len(nonzero if tokens is None else tokens):
            found[key] = used
    if found:
        together = torch.cat(list(found.values()))
        # What is empty is made there, without waiting.
        together = together.to(device) if len(together) else together.new_empty(0, device=device)
        found = dict(zip(found, together.split([len(each) for each in found.values()]), strict=True))
    return {layer: found.get(id(each)) for layer, each in features.items()}


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
        if (tokens := region.on((height, width), n.device)) is not None:
            added = torch.zeros_like(added).index_copy(1, tokens, added[:, tokens])
        halves = extra_options["cond_or_uncond"]
        if not without.isdisjoint(halves):
            each = added.chunk(len(halves))
            added = torch.cat([one * 0 if half in without else one for half, one in zip(halves, each, strict=True)])
        # Of a half's pictures, which lie one after the other, or of each one
        return (n.unflatten(0, (len(added), -1)) + added.unsqueeze(1)).flatten(0, 1)

    return with_patches(options, "attn2_output_patch", add)
