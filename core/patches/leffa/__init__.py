"""Leffa (arXiv 2412.08486) on the host's sampler: the reference in every self-attention."""

from .observe import learned_flow
from .tokens import FeatureCache
from .wrappers import Settings, add_reference, attach_reference_unet

__all__ = ["FeatureCache", "Settings", "add_reference", "attach_reference_unet", "learned_flow"]
