"""Leffa's floating-point operations against those of the published code, counted without computing anything."""

from __future__ import annotations

from typing import Any

import torch
from leffa_models import Inputs, Published, without_weights
from refattention.core.leffa import layout
from refattention.core.leffa.reference import Reference
from refattention.core.leffa.run import Attending
from refattention.core.leffa.tokens import ReferenceTokens
from refattention.core.leffa.unet import LeffaUNet, ReferenceUNet
from refattention.core.patches.attention import route_self_attention
from steps import operations

STEPS = 50


def rows(width: int, height: int) -> dict[str, dict[str, Any]]:
    """The share of the operations of a picture of 50 steps with CFG, by how often the reference is looked at."""
    with torch.inference_mode():
        reference, generative = _published(width, height)
        one, two, first, later = _ours(width, height)
    ratios = {
        "once": (two + first + (STEPS - 1) * later, reference + STEPS * generative, 0.64),
        "every": (one + first, reference + generative, 0.59),  # with the zeros kept from an earlier picture
    }
    return {
        f"leffa.{name}.operations.{width}x{height}": {
            "value": round(ours / theirs, 4),
            "unit": "times the published operations",
            "bound": bound,
            "detail": {"a_TFLOP": theirs / 1e12, "b_TFLOP": ours / 1e12},
        }
        for name, (ours, theirs, bound) in ratios.items()
    }


def _published(width: int, height: int) -> tuple[int, int]:
    """Operations of the reference U-Net and of the generative one."""
    code, inputs = Published.from_weights({}, "meta"), Inputs(width, height, "meta")
    features = code.features(inputs, 601)
    return operations(lambda: code.features(inputs, 601)), operations(lambda: code.evaluate(inputs, 601, features))


def _ours(width: int, height: int) -> tuple[int, int, int, int]:
    """Operations of a reference pass for one and for two references, and of the first and every later step."""
    generative = without_weights(LeffaUNet, layout.GENERATIVE)
    reference = without_weights(ReferenceUNet, layout.REFERENCE)
    size = height // 8, width // 8

    def empty(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, device="meta")

    def features(batch: int) -> list[torch.Tensor]:
        return reference.features(empty(batch, 4, *size), empty(batch))

    halves = [Reference(empty(4, *size)) for _ in range(2)]
    looks = {half: ReferenceTokens(features(1), keep=True) for half in halves}

    def step() -> torch.Tensor:
        attending = Attending(generative, halves, looks)
        options = route_self_attention({"cond_or_uncond": [1, 0], "uuids": [1, 0]}, attending.handle)
        return generative(empty(2, 12, *size), empty(2), transformer_options=options)

    def shared() -> torch.Tensor:
        """What equal halves share; whether they are equal cannot be seen without computing."""
        convolution, residual = generative.input_blocks[0][0], generative.input_blocks[1][0]
        return residual(convolution(empty(1, 12, *size)), empty(1, 4 * generative.model_channels))

    saved = operations(shared)
    counted = [operations(step) - saved for _ in range(2)]
    return operations(lambda: features(1)), operations(lambda: features(2)), counted[0], counted[1]
