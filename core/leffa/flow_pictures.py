"""Pictures of a flow field."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..kernels.attention import coordinates
from ..pictures.grid import CELL
from .kernel import colour_wheel, warp


def pictures_of(flow: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """The reference warped by a flow field, and the displacement as a colour wheel.

    Args:
        flow: (B, h, w, 2) coordinates on the reference.
        reference: (1 or B, H, W, C).

    Returns:
        twice (B, 8 h, 8 w, 3).
    """
    batch, height, width, _ = flow.shape
    size = CELL * height, CELL * width
    planes = reference[..., :3].movedim(-1, 1).expand(batch, -1, -1, -1).to(flow)
    own = coordinates((height, width), flow).unflatten(0, (height, width))
    wheel = F.interpolate(colour_wheel(flow - own).movedim(-1, 1), size, mode="bilinear", align_corners=True)
    return warp(planes, flow, size).movedim(1, -1).clamp(0, 1), wheel.movedim(1, -1).clamp(0, 1)
