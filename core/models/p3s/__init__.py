"""The trainable part of P3S-Diffusion (arXiv 2412.19533): encoder, simplified copy of the U-Net, zero convolutions."""

from ..base import fingerprint
from .adapter import Origin, TrainedAdapter, for_model, new_adapter, trainable, trained_weights
from .files import load_adapter, save_adapter

__all__ = [
    "Origin",
    "TrainedAdapter",
    "fingerprint",
    "for_model",
    "load_adapter",
    "new_adapter",
    "save_adapter",
    "trainable",
    "trained_weights",
]
