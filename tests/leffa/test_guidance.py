"""Rescaled guidance against its definition, sample by sample in float64."""

from __future__ import annotations

import pytest
import torch
from refattention.core.leffa.kernel import rescale_guidance


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0, 2.5])
def test_rescaled_guidance(phi: float) -> None:
    generator = torch.Generator().manual_seed(0)
    guided, conditional = (torch.randn(3, 4, 6, 5, generator=generator) * scale for scale in (2.0, 1.0))
    got = rescale_guidance(guided, conditional, phi)
    for one, g, c in zip(got, guided.double(), conditional.double(), strict=True):
        spread = [((x - x.mean()) ** 2).sum().div(x.numel() - 1).sqrt() for x in (c, g)]
        assert (one - (phi * g * spread[0] / spread[1] + (1 - phi) * g)).abs().max() < 1e-5
    assert (rescale_guidance(7 * guided, 7 * conditional, phi) - 7 * got).abs().max() < 1e-4


def test_equal_predictions_stay() -> None:
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(rescale_guidance(x, x, 2.5), x)
