"""What the cross-attentions of a U-Net see in a reference whose tokens are their context."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..kernels.attention import AttentionLayer
from ..patches.attention import AttentionCall, Chunk, Options, route_cross_attention
from ..patches.blocks import Layer
from ..patches.reference_pass import ReferenceRecorded
from ..patches.single_evaluation import evaluate_once
from ..patches.unet import require_image_unet, self_attention_layers
from .observe import Groups, Look, Maps, View, brought, require_whole, watched

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


@dataclass(frozen=True)
class _Reading:
    """Shows the cross-attentions of the wanted layers as they run and ends the pass after the last of them."""

    wanted: list[Layer]
    see: Callable[[AttentionCall], None]
    node: str

    def route(self, x: Tensor, inputs: Mapping[str, Any], options: Options) -> Options:
        """One forward pass."""
        return route_cross_attention(options, self)

    def context(self, layer: Layer, chunks: tuple[Chunk, ...], context: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return context, value

    def attend(self, call: AttentionCall) -> Tensor:
        if call.layer in self.wanted:
            require_whole(call.block, call.grid, call.q.shape[1], self.node)
            self.see(call)
        if call.layer == self.wanted[-1]:
            raise ReferenceRecorded
        return call.plain()


def token_maps(
    model: ModelPatcher,
    conditioning: list[Any],
    reference_grid: tuple[int, int],
    samples: Tensor,
    look: Look,
    groups: Groups,
    node: str,
    reference_mask: Tensor | None = None,
) -> Maps:
    """Maps over the reference of what groups of queries attend to; the trained counterpart of `attention_maps`.

    One pass of the picture for each timestep, which ends at the last layer that is to be read.

    Args:
        model: an image U-Net; stays as it is.
        conditioning: one entry whose text is the tokens of the reference.
        reference_grid: (h, w) of the tokens over the reference.
        The others: as for `attention_maps`.

    Returns:
        As `attention_maps`.

    Raises:
        RuntimeError: not an image U-Net, or another patch changes the number of tokens.
    """
    layers = self_attention_layers(require_image_unet(model, node))
    wanted = [place for place in layers if place in look.layers]
    maps: Maps = {}
    view = View(groups, reference_mask)
    for timestep in look.timesteps:

        def see(call: AttentionCall, timestep: int = timestep) -> None:
            layer = AttentionLayer(call.q, call.k, call.heads, call.grid, reference_grid)
            maps[timestep, call.layer] = view.map_of(layer)

        reading = watched(model, _Reading(wanted, see, node).route)
        evaluate_once(reading, conditioning, samples, timestep, look.seed)
    return brought(maps)
