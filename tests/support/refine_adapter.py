"""An untrained adapter of Refine by Align for the demo's models."""

from __future__ import annotations

from pathlib import Path

from refattention.core.models.base import fingerprint
from refattention.core.patches.unet import family
from refattention.core.refine_by_align.adapter import Origin, TrainedAdapter, new_network, trained_weights
from refattention.core.refine_by_align.files import save_adapter
from refattention_demo import vision
from refattention_demo.loading import load


def write_refine_adapter(path: Path) -> None:
    """Writes one that fits the demo's SD1.5 model and vision encoder."""
    model, *_ = load("sd15")
    width, size = vision.WIDTH, vision.PATCH * round(vision.PATCHES**0.5)
    weights = trained_weights(new_network(model, width, 0), model.model.diffusion_model.state_dict(), model)
    save_adapter(TrainedAdapter(weights, Origin(family(model), fingerprint(model), width, size, {})), path)
