"""Names that Leffa's model, its patch and its nodes share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

KEY = "refattention.leffa"
REFERENCES = "leffa_references"  # entry of a conditioning: one `Reference` for each sample, or one for all


@dataclass(frozen=True, eq=False)
class Reference:
    """What the reference U-Net looks at. Immutable; samples with the same object share one pass.

    Attributes:
        latent: (C, H, W), scaled as the U-Net takes it; on the CPU.
        is_zero: whether it is the latent of zeros that the unconditional half looks at.
    """

    latent: Tensor
    is_zero: bool = False
