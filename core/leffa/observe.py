"""What a model's attention has learned, seen in one evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from torch import Tensor
from torch.nn import functional as F

from ..kernels.attention import AttentionLayer
from ..patches.attention import AttentionCall
from ..patches.single_evaluation import evaluate_once
from .kernel import attention_flow
from .reference import REFERENCES
from .run import OBSERVER

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


def learned_flow(
    model: ModelPatcher, positive: list[Any], samples: Tensor, timestep: int, seed: int, temperature: float
) -> Tensor:
    """Where the tokens of finished pictures look on their references, as Leffa's loss sees it.

    The pictures are noised to one timestep and passed through the model once; the flow is the mean over the layers
    whose grid is at least 1/4 of the latent's, each interpolated to the finest.

    Args:
        model: from a Leffa node.
        positive: its conditioning.
        samples: (B, 4, h, w) finished latents.
        timestep: 0 to 999.
        seed: of the noise.
        temperature: tau of the loss.

    Returns:
        (B, h, w, 2) coordinates on the reference, corners at -1 and 1.
    """
    sizes = [one.latent.shape[-2:] for _, options in positive for one in options.get(REFERENCES, ())]
    flows: list[Tensor] = []

    def observe(call: AttentionCall, layer: BasicTransformerBlock, keys: list[Tensor]) -> None:
        if 4 * call.grid[0] < samples.shape[-2]:
            return
        grid = _grid(keys[0].shape[1], sizes[0])
        one = AttentionLayer(call.q.float(), torch.cat(keys).float(), layer.n_heads, call.grid, grid)
        flow = attention_flow(one, temperature).unflatten(1, call.grid).movedim(-1, 1)
        fine = (samples.shape[-2], samples.shape[-1])
        flows.append(F.interpolate(flow, fine, mode="bilinear", align_corners=True).cpu())

    watched = model.clone()
    watched.model_options["transformer_options"][OBSERVER] = observe
    evaluate_once(watched, positive, samples, timestep, seed)
    return torch.stack(flows).mean(0).movedim(1, -1)


def _grid(tokens: int, size: torch.Size) -> tuple[int, int]:
    """The grid of a layer with that many tokens, in a U-Net that halves a latent of that size, rounding up."""
    height, width = size
    while height * width > tokens:
        height, width = -(-height // 2), -(-width // 2)
    return height, width
