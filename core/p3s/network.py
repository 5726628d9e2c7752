"""The networks that are trained for a subject."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn
from torch.nn import functional as F

from ..patches.blocks import Layer
from .features import Features, FeaturesOf
from .kernel import biased_latent
from .layout import Config, copied_layers, fed_layers, simplified, source_name, table

ENCODER_WIDTH = 64  # d of Eq. 4; the paper is silent
WEIGHT_WIDTH = 16  # of the layer inside of LearnedWeight; the paper is silent


class ReferenceEncoder(nn.Module):
    """RNGR encoder: the vision encoder's view of the subject as a bias on the reference's latent, Eq. 4 and 5.

    Args:
        channels: of the latent.
        vision_width: of the vision encoder's tokens.
        operations: as in ComfyUI's modules.
        **placed: dtype and device.
    """

    def __init__(self, channels: int, vision_width: int, operations: Any, **placed: Any) -> None:
        super().__init__()
        self.zero = operations.Conv2d(channels, channels, 1, **placed)
        self.to_q = operations.Linear(channels, ENCODER_WIDTH, bias=False, **placed)
        self.to_k = operations.Linear(vision_width, ENCODER_WIDTH, bias=False, **placed)
        self.to_v = operations.Linear(vision_width, channels, bias=False, **placed)

    def forward(self, latent: Tensor, vision: Tensor, options: dict[str, Any] | None = None) -> Tensor:
        """I''.

        Args:
            latent: I', (G, c, h, w).
            vision: c_s, (G, L, vision_width).
            options: ComfyUI's transformer_options, for an override of its attention.
        """

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return optimized_attention(q, k, v, 1, transformer_options=options)

        q = self.to_q(self.zero(latent).flatten(2).transpose(1, 2))
        return biased_latent(attend, latent, q, self.to_k(vision), self.to_v(vision))


class LearnedWeight(nn.Module):
    """The weight of the injection as a function of t / T that is learnt, the paper's "MLP"; at first it is 1."""

    def __init__(self, operations: Any, **placed: Any) -> None:
        super().__init__()
        self.hidden = operations.Linear(1, WEIGHT_WIDTH, **placed)
        self.out = operations.Linear(WEIGHT_WIDTH, 1, **placed)

    def forward(self, time: Tensor) -> Tensor:
        """`eps_t = 1 + w_2 silu(w_1 t / T + b_1) + b_2`.

        Args:
            time: (G,), t / T, from 1 (noise) to 0 (picture).

        Returns:
            (G,).
        """
        change: Tensor = self.out(F.silu(self.hidden(time.unsqueeze(-1))))
        return 1 + change.squeeze(-1)


class P3SNetwork(nn.Module):
    """Encoder, simplified copy of the U-Net, and a zero convolution behind each attention of the copy.

    The zero convolutions are linear layers: on tokens, that is what a convolution of 1 x 1 is.

    Args:
        config: of the frozen U-Net, in ComfyUI's form.
        vision_width: of the vision encoder's tokens.
        operations: as in ComfyUI's modules.
        learned_weight: whether the weight of the injection is learnt, too.
        **placed: dtype and device.

    Attributes:
        weight: gives the learnt weight; None where it is not learnt.
    """

    def __init__(
        self, config: Config, vision_width: int, operations: Any, learned_weight: bool = False, **placed: Any
    ) -> None:
        super().__init__()
        self.rows = table(config)
        self.encoder = ReferenceEncoder(config["in_channels"], vision_width, operations, **placed)
        self.unet = UNetModel(**{**simplified(config), **placed}, operations=operations)
        widths = [m.norm1.normalized_shape[0] for m in self.unet.modules() if isinstance(m, BasicTransformerBlock)]
        self.zero_hidden = nn.ModuleList([operations.Linear(width, width, **placed) for width in widths])
        self.zero_cross = nn.ModuleList([operations.Linear(width, width, **placed) for width in widths])
        self.weight = LearnedWeight(operations, **placed) if learned_weight else None
        self.feeds = fed_layers(config)
        self._numbers = {layer: number for number, layer in enumerate(copied_layers(config))}

    def forward(
        self,
        latent: Tensor,
        vision: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        options: dict[str, Any] | None = None,
        evaluate: Callable[..., Tensor] | None = None,
    ) -> FeaturesOf:
        """Reads the reference, for each layer of the frozen U-Net.

        Args:
            latent: I', (G, c, h, w), as the U-Net takes it.
            vision: c_s, (G, L, vision_width).
            timesteps: (G,).
            context: (G, tokens, width), the text.
            y: (G, width), what some families add to the timestep.
            options: transformer_options of the copy, for what else is to be seen there.
            evaluate: (unet, x, timesteps, context, y, transformer_options), another way to pass it through the copy.
        """
        hidden: dict[Layer, Tensor] = {}
        read: dict[Layer, Features] = {}

        # By label and not by order: a block that is recomputed for its gradient goes through here again.
        def record_hidden(n: Tensor, k: Tensor, v: Tensor, at: dict[str, Any]) -> tuple[Tensor, ...]:
            layer = at["block"], at["block_index"]
            hidden[layer] = self.zero_hidden[self._numbers[layer]](n)
            return n, k, v

        def record_cross(n: Tensor, at: dict[str, Any]) -> Tensor:
            layer = at["block"], at["block_index"]
            height, width = at["activations_shape"][-2:]
            cross = self.zero_cross[self._numbers[layer]](n)
            read[layer] = Features((height, width), hidden[layer], cross)
            return n

        options = options or {}
        patches = {"attn1_patch": [record_hidden], "attn2_output_patch": [record_cross], **options.get("patches", {})}
        pass_through = evaluate or UNetModel.__call__
        options = {**options, "patches": patches}
        pass_through(self.unet, self.encoder(latent, vision, options), timesteps, context, y, None, options)
        return {frozen: read[copied] for frozen, copied in self.feeds.items()}


def initialise(network: P3SNetwork, frozen: Callable[[str], Tensor], seed: int) -> None:
    """Sets the weights that training starts from.

    The copy gets those of the frozen U-Net, zero convolutions zeros, the projections of the encoder random ones, and
    what is learnt of the injection's weight such that it is 1.

    Args:
        network: its weights may be uninitialised.
        frozen: gives the weights of the frozen U-Net by their name in it.
        seed: of the random weights.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.state_dict().items():
            part, _, rest = name.partition(".")
            if part == "unet":
                weight.copy_(frozen(source_name(rest, network.rows)))
            elif (part == "encoder" and not rest.startswith("zero")) or name == "weight.hidden.weight":
                weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[1] ** -0.5)
            else:
                weight.zero_()
