"""The networks that are trained for a subject."""

from __future__ import annotations

from typing import Any

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn

from ...kernels.p3s import biased_latent
from ...p3s import Features, FeaturesOf, Layer
from .layout import Config, fed_layers, simplified, source_name, table

ENCODER_WIDTH = 64  # d of Eq. 4; the paper is silent


class ReferenceEncoder(nn.Module):
    """RNGR encoder: the vision encoder's view of the subject as a bias on the reference's latent, Eq. 4 and 5.

    Args:
        channels: of the latent.
        vision_width: of the vision encoder's tokens.
        operations: as in the host's modules.
        **placed: dtype and device.
    """

    def __init__(self, channels: int, vision_width: int, operations: Any, **placed: Any) -> None:
        super().__init__()
        self.zero = operations.Conv2d(channels, channels, 1, **placed)
        self.to_q = operations.Linear(channels, ENCODER_WIDTH, bias=False, **placed)
        self.to_k = operations.Linear(vision_width, ENCODER_WIDTH, bias=False, **placed)
        self.to_v = operations.Linear(vision_width, channels, bias=False, **placed)

    def forward(self, latent: Tensor, vision: Tensor) -> Tensor:
        """I''.

        Args:
            latent: I', (G, c, h, w).
            vision: c_s, (G, L, vision_width).
        """
        q = self.to_q(self.zero(latent).flatten(2).transpose(1, 2))
        return biased_latent(_attend_in_one_head, latent, q, self.to_k(vision), self.to_v(vision))


class P3SNetwork(nn.Module):
    """Encoder, simplified copy of the U-Net, and a zero convolution behind each attention of the copy.

    The zero convolutions are linear layers: on tokens, that is what a convolution of 1 x 1 is.

    Args:
        config: of the frozen U-Net, in the host's form.
        vision_width: of the vision encoder's tokens.
        operations: as in the host's modules.
        **placed: dtype and device.
    """

    def __init__(self, config: Config, vision_width: int, operations: Any, **placed: Any) -> None:
        super().__init__()
        self.rows = table(config)
        self.encoder = ReferenceEncoder(config["in_channels"], vision_width, operations, **placed)
        self.unet = UNetModel(**{**simplified(config), **placed}, operations=operations)
        widths = [m.norm1.normalized_shape[0] for m in self.unet.modules() if isinstance(m, BasicTransformerBlock)]
        self.zero_hidden = nn.ModuleList([operations.Linear(width, width, **placed) for width in widths])
        self.zero_cross = nn.ModuleList([operations.Linear(width, width, **placed) for width in widths])
        self._feeds = fed_layers(config)

    def forward(
        self, latent: Tensor, vision: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None = None
    ) -> FeaturesOf:
        """Reads the reference, for each layer of the frozen U-Net.

        Args:
            latent: I', (G, c, h, w), as the U-Net takes it.
            vision: c_s, (G, L, vision_width).
            timesteps: (G,).
            context: (G, tokens, width), the text.
            y: (G, width), what some families add to the timestep.
        """
        hidden: list[Tensor] = []
        read: dict[Layer, Features] = {}

        def record_hidden(n: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
            hidden.append(self.zero_hidden[len(hidden)](n))
            return n, k, v

        def record_cross(n: Tensor, options: dict[str, Any]) -> Tensor:
            height, width = options["activations_shape"][-2:]
            cross = self.zero_cross[len(read)](n)
            read[options["block"], options["block_index"]] = Features((height, width), hidden[-1], cross)
            return n

        patches = {"attn1_patch": [record_hidden], "attn2_output_patch": [record_cross]}
        self.unet(self.encoder(latent, vision), timesteps, context, y, transformer_options={"patches": patches})
        return {frozen: read[copied] for frozen, copied in self._feeds.items()}


def initialise(network: P3SNetwork, frozen: dict[str, Tensor], seed: int) -> None:
    """Sets the weights that training starts from.

    The copy gets those of the frozen U-Net, zero convolutions zeros, the projections of the encoder random ones.

    Args:
        network: its weights may be uninitialised.
        frozen: the state dict of the frozen U-Net.
        seed: of the random weights.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.state_dict().items():
            part, _, rest = name.partition(".")
            if part == "unet":
                weight.copy_(frozen[source_name(rest, network.rows)])
            elif part == "encoder" and not rest.startswith("zero"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[1] ** -0.5)
            else:
                weight.zero_()


def _attend_in_one_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return optimized_attention(q, k, v, 1)
