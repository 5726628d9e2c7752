"""The trainable part of P3S-Diffusion (arXiv 2412.19533): encoder, simplified copy of the U-Net, zero convolutions."""

from .adapter import new_adapter

__all__ = ["new_adapter"]
