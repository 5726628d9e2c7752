"""Classifier-free guidance, the kernels."""

from __future__ import annotations

from torch import Tensor


def rescale_guidance(guided: Tensor, conditional: Tensor, phi: float) -> Tensor:
    """Pulls the spread of a guided prediction towards that of the conditional one (arXiv 2305.08891, Eq. 14 to 16).

        result = (phi * std(conditional) / std(guided) + 1 - phi) * guided

    Args:
        guided, conditional: (B, ...), predicted noise; any common factor cancels.
        phi: 1 gives the conditional spread; Leffa uses its guidance scale, so it extrapolates.

    Returns:
        the shape of `guided`.
    """
    axes = tuple(range(1, guided.ndim))
    ratio = conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return guided * (phi * ratio + 1 - phi)
