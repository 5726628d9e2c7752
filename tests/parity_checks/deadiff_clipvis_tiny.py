"""From a picture to DEADiff's tokens: DEADiff as it is loaded from a file, against the official application.

The weights are those of the golden itself and of the Q-Former golden with the same letter beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import deadiff_support as deadiff
import torch
from refattention.core.deadiff.preprocess import encoder_input
from safetensors.torch import load_file
from torch import Tensor

if TYPE_CHECKING:
    from parity import Golden

TOLERANCE = 1e-5


def outputs(golden: Golden) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """Yields (name, ours, recorded, tolerance) for the encoder's input, its features, and the tokens."""
    t, config = golden.tensors, golden.info["config"]
    weights = load_file(golden.path.with_name(golden.path.name.replace("clipvis", "qformer"))) | t
    for part in ("weight", "bias"):  # recorded once, because both branches have the same
        weights[f"content_blip.ln_vision.{part}"] = t[f"style_blip.ln_vision.{part}"]
    loaded = deadiff.load_with_heads(weights | deadiff.random_projections(config["hidden"]), config)
    image = t["in.image_u8"].unsqueeze(0) / 255.0
    tower = loaded.towers["style"]
    pixels = encoder_input(image, tower.image_size, "squash")
    yield "clip_input", pixels, t["clip_input"], TOLERANCE
    with torch.inference_mode():
        features = tower.features(pixels.to(tower.patcher.load_device)).cpu()
        yield "vit_out", features, t["vit_out"], TOLERANCE
        yield "ln_vision_out", loaded.readers.model.style.vision_norm(features), t["ln_vision_out"], TOLERANCE
        for branch in ("style", "content"):
            tokens = loaded.tokens(branch, image, "squash", "average")
            yield f"{branch}.tokens", tokens, t[f"{branch}.tokens"], TOLERANCE
