"""What one Leffa node that samples asks for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LeffaSettings:
    """What one sampling node asks for.

    Attributes:
        interval: how many steps use what one pass of the reference gave; 1 is every step, 0 once for all.
        rescale: whether guidance is rescaled as the published pipeline does it.
    """

    interval: int = 1
    rescale: bool = True
