"""Refine-by-Align (arXiv 2412.00306) on the host's U-Nets. What needs OpenCV is in `repair` and `probe`."""

from .observe import Look, attention_maps, observe

__all__ = ["Look", "attention_maps", "observe"]
