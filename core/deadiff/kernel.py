"""Joint attention to text and to image tokens: one softmax over the keys of both.

Symbols as in `attention`: G chunks of B samples in dim 0, N query tokens, C = heads * head size; L text tokens,
T image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.attention import Attend


@dataclass(frozen=True)
class Joint:
    """Keys and values for some rows of a batch.

    Attributes:
        rows: the samples (dim 0 of the queries) that they serve.
        keys, values: (rows, L + T, C), text first.
        text: L.
    """

    rows: slice
    keys: Tensor
    values: Tensor
    text: int

    @property
    def has_image(self) -> bool:
        """Whether there are image tokens, so that the result differs from attention to text."""
        return self.keys.shape[1] > self.text


def join(text: Tensor, image: Tensor, weight: float) -> Tensor:
    """`[text ; w * image]` along the token axis: how DEADiff (arXiv 2403.06951) builds its keys, and its values.

    Args:
        text: (rows, L, C), projected.
        image: (1 or rows, T, C), projected; of any floating type and device.
        weight: w. It scales keys and values alike, so it changes how much the image is attended to, too.

    Returns:
        (rows, L + T, C), type and device of `text`.

    Raises:
        ValueError: `image` holds neither one sample nor one for each row.
    """
    if len(image) not in (1, len(text)):
        raise ValueError(f"{len(image)} sets of image tokens do not fit {len(text)} samples. Give one, or one each.")
    # Scaled before it is rounded to the type of the text.
    return torch.cat([text, (weight * image).to(text).expand(len(text), -1, -1)], dim=1)


def joint_attention(
    attend: Attend,
    q: Tensor,
    joints: Sequence[Joint],
    region: float | Tensor = 1.0,
    rest: Tensor | None = None,
) -> Tensor:
    """`Att(Q, [K_text ; w K_image], [V_text ; w V_image])`, DEADiff (arXiv 2403.06951).

    Args:
        attend: computes Att for (batch, tokens, C) tensors.
        q: (rows, N, C).
        joints: keys and values; together they serve every row once, in order.
        region: share of the joint attention in the result; 1, or (rows or 1, N, 1) for a region.
        rest: (rows, N, C), what the rest of the result is; None is attention to the text alone.

    Returns:
        (rows, N, C). Where the region is 0 it equals the rest to the bit, where it is 1 the joint attention.
    """
    parts = []
    for joint in joints:
        rows = q[joint.rows]
        if not isinstance(region, Tensor):
            parts.append(attend(rows, joint.keys, joint.values))
            continue
        text = joint.keys[:, : joint.text], joint.values[:, : joint.text]
        out = attend(rows, *text) if rest is None else rest[joint.rows]
        if joint.has_image:
            share = region[joint.rows] if len(region) > 1 else region
            out = torch.lerp(out, attend(rows, joint.keys, joint.values), share)  # exact at both ends
        parts.append(out)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def in_turn(shares: Sequence[Tensor]) -> list[Tensor]:
    """Shares of several regions as what `joint_attention` needs when the regions are laid over each other in turn.

    Laid over what is there with r_i, each ends up with its own share: r_i = s_i / (1 - Σ_j s_j + Σ_{j <= i} s_j). Where
    the shares add up to more than 1 they are divided by their sum first, so that styles that overlap share the place.

    Args:
        shares: s_i in [0, 1], of shapes that fit each other.

    Returns:
        r_i in [0, 1], float32; one share alone is what it was.
    """
    exact = [share.double() for share in shares]
    total = torch.stack(torch.broadcast_tensors(*exact)).sum(dim=0).clamp(min=1)
    exact = [share / total for share in exact]
    there = (1 - torch.stack(exact).sum(dim=0)).clamp(min=0)
    found = []
    for share in exact:
        there = there + share
        found.append(torch.where(share > 0, share / there, 0.0).clamp(max=1).float())
    return found
