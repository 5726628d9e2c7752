"""RefDrop's attention kernel on recorded q, k, v (float32) against outputs computed in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from refattention.core.refdrop.kernel import Branch, reference_feature_guidance
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from parity import Golden


def outputs(golden: Golden) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """Yields (name, ours, recorded, tolerance) for each recorded case."""
    t, config = golden.tensors, golden.info["config"]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (config["heads"], -1)).transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    for name, case in golden.info["cases"].items():
        branches = [
            Branch(b["weight"], t[f"in.{b['reference']}.k"], t[f"in.{b['reference']}.v"], b["first"], b["with_own"])
            for b in case
        ]
        own = t["in.q"], t["in.k"], t["in.v"]
        got = reference_feature_guidance(attend, *own, config["chunks"], branches)
        yield name, got.to(torch.float64), t[f"out.{name}"], golden.info["tolerance"]
