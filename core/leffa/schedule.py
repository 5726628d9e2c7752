"""The noise levels of Leffa's published sampling loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .model import require_leffa

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

TRAINED = 1000  # timesteps


def timesteps_of(steps: int) -> Tensor:
    """Timesteps of diffusers' "leading" spacing with an offset of 1, descending: 30 steps are 958, 925, …, 34, 1.

    Args:
        steps: 1 to 999.
    """
    return torch.arange(steps).flip(0) * (TRAINED // steps) + 1


def official_sigmas(model: ModelPatcher, steps: int) -> Tensor:
    """(steps + 1,) noise levels at these timesteps, and the 0 at which the last step ends.

    Raises:
        RuntimeError: the model is not Leffa's.
    """
    require_leffa(model, "Leffa Sigmas")
    sampling = model.get_model_object("model_sampling")
    return torch.cat([sampling.sigma(timesteps_of(steps)).float().cpu(), torch.zeros(1)])
