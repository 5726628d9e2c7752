"""How well two boxes agree."""

from __future__ import annotations

from refattention.core.refine_by_align.match import Box


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    across = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    down = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    common = max(across, 0) * max(down, 0)
    return common / (a.width * a.height + b.width * b.height - common)
