"""A node for the claims alone: concatenated attention, computed as the interpolation that RefDrop says it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy_api.latest import ComfyExtension, io
from torch import Tensor


def interpolated(func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, **kwargs: Any) -> Tensor:
    """`Att(Q, [K_1; K], [V_1; V])` as `C * Att(Q, K_1, V_1) + (1 - C) * Att(Q, K, V)`, RefDrop (arXiv 2405.17661).

    C, one number for each query and head, is the reference's share of the softmax. What has not as many keys of a
    reference as of its own is left to the host.

    Args:
        func: the host's attention, which computes both of the attentions.
        q, k, v: (B, N, C) and (B, 2 N, C), as an `optimized_attention_override` gets them.
    """
    tokens = q.shape[1]
    if k.shape[1] != 2 * tokens:
        return func(q, k, v, heads, **kwargs)
    by_head = [each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k)]
    scores = by_head[0] @ by_head[1].transpose(-1, -2) * by_head[0].shape[-1] ** -0.5
    share = scores.softmax(-1)[..., :tokens].sum(-1).transpose(1, 2).unsqueeze(-1)  # (B, N, heads, 1)
    reference, own = (
        func(q, k[:, part], v[:, part], heads, **kwargs).unflatten(-1, (heads, -1))
        for part in (slice(tokens), slice(tokens, None))
    )
    return torch.lerp(own, reference, share).flatten(2)


class Interpolated(io.ComfyNode):
    """Sets it as the model's attention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="ClaimsInterpolated",
            category="refattention/claims",
            inputs=[io.Model.Input("model")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        """Returns a patched clone."""
        clone = model.clone()
        clone.model_options["transformer_options"]["optimized_attention_override"] = interpolated
        return io.NodeOutput(clone)


class Extension(ComfyExtension):
    """The pack of this one node."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All of it."""
        return [Interpolated]


async def comfy_entrypoint() -> Extension:
    """What ComfyUI asks for."""
    return Extension()
