"""The network between a vision encoder and the cross-attentions of a U-Net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PatchTokens(nn.Module):
    """Patch tokens of a vision encoder as tokens of a U-Net's context, each at its place.

    Args:
        vision_width: of the encoder's tokens.
        context_width: of the U-Net's context.
        operations: as in ComfyUI's modules.
        **placed: dtype and device.

    Note:
        The paper's project page, which is all that was read, leaves the network open. Tokens are not mixed, so that
        attention to a token is attention to its place.
    """

    def __init__(self, vision_width: int, context_width: int, operations: Any, **placed: Any) -> None:
        super().__init__()
        self.norm = operations.LayerNorm(vision_width, **placed)
        self.enter = operations.Linear(vision_width, context_width, **placed)
        self.leave = operations.Linear(context_width, context_width, **placed)
        self.norm_out = operations.LayerNorm(context_width, **placed)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, L, vision_width) -> (B, L, context_width)."""
        out: Tensor = self.norm_out(self.leave(F.gelu(self.enter(self.norm(patches)))))
        return out


def initialise(network: PatchTokens, seed: int) -> None:
    """Sets the weights that training starts from."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.state_dict().items():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[1] ** -0.5)
            else:
                weight.fill_(float(name.startswith("norm") and name.endswith("weight")))
