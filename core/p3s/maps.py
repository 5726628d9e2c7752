"""The maps of the cross-attentions of one forward pass."""

from __future__ import annotations

from collections.abc import Collection

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ..kernels.attention import attention_map
from ..patches.attention import Options
from ..patches.blocks import Layer
from ..patches.unet import self_attention_layers


class CrossMaps:
    """Sees what enters chosen cross-attentions of a U-Net, and computes their maps from it.

    Args:
        unet: the U-Net.
        layers: which of its transformer layers.
    """

    def __init__(self, unet: UNetModel, layers: Collection[Layer]) -> None:
        self._layers = self_attention_layers(unet)
        self._wanted = frozenset(layers)
        self._entered: dict[Layer, tuple[Tensor, Tensor, tuple[int, int]]] = {}

    def see(self, n: Tensor, context: Tensor, value: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor]:
        """An `attn2_patch` of ComfyUI."""
        layer = options["block"], options["block_index"]
        if layer in self._wanted:
            height, width = options["activations_shape"][-2:]
            self._entered[layer] = n, context, (height, width)
        return n, context, value

    def grid(self, layer: Layer) -> tuple[int, int]:
        """(h, w) of its tokens."""
        return self._entered[layer][2]

    def map(self, layer: Layer) -> Tensor:
        """(B, heads, N, L), Eq. 13, float32."""
        n, context, _ = self._entered[layer]
        attention = self._layers[layer].attn2
        return attention_map(attention.to_q(n).float(), attention.to_k(context).float(), attention.heads)
