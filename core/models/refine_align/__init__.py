"""The trained back end of Refine-by-Align (arXiv 2412.00306): a U-Net that reads a picture's patches as its context."""

from .adapter import Origin, TrainedAdapter, for_model, new_network, trained_weights
from .files import load_adapter, save_adapter
from .network import PatchTokens
from .reader import PatchReader, patches_of

__all__ = [
    "Origin",
    "PatchReader",
    "PatchTokens",
    "TrainedAdapter",
    "for_model",
    "load_adapter",
    "new_network",
    "patches_of",
    "save_adapter",
    "trained_weights",
]
