"""PointMask on a photograph over the forward pass of its encoder alone, a full-size CLIP ViT-L/14 of random weights."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import comfy.clip_vision
import folder_paths
import numpy as np
import torch
from PIL import Image
from refattention.nodes.point_mask import PointMask
from timing import alternate

CONFIG = Path(comfy.clip_vision.__file__).parent / "clip_vision_config_vitl.json"
PHOTO = Path(__file__).resolve().parents[1] / "workflows" / "pictures" / "refattention_two_cups.jpg"
POINTS = {"positive_coords": '[{"x": 80, "y": 230}]', "negative_coords": '[{"x": 830, "y": 230}]'}


def random_encoder() -> comfy.clip_vision.ClipVisionModel:
    """CLIP ViT-L/14 as the host builds it."""
    encoder = comfy.clip_vision.ClipVisionModel(str(CONFIG))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.03)
    return encoder


@torch.inference_mode()
def rows(repeats: int) -> dict[str, dict[str, Any]]:
    """One row; the node is run whole, with previews and inpainting."""
    with Image.open(PHOTO) as photo:
        image = torch.from_numpy(np.asarray(photo.convert("RGB"), np.float32) / 255)[None]
    encoder = random_encoder()
    widgets = {item.id: getattr(item, "default", None) for item in PointMask.GET_SCHEMA().inputs}
    # Random weights see no subject; a fixed threshold below the point's own similarity selects one all the same.
    inputs = {**widgets, **POINTS, "image": image, "clip_vision": encoder, "threshold": 0.05}
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_temp_directory(folder)
        times = alternate(
            lambda: encoder.encode_image(image, crop=False), lambda: PointMask.execute(**inputs), 3 * repeats
        )
    detail = {"a": "encoder alone", "b": "PointMask, 900 x 360 pixels", **times.detail(), "repeats": 3 * repeats}
    return {
        "pointmask.vs_encoder": {
            "value": round(times.ratio, 4),
            "unit": "times the encoder's forward pass",
            "bound": 1.1,
            "detail": detail,
        }
    }
