"""An extension of a training's configuration: the world's vision encoder at its own width.

ComfyUI reads it inside CLIP ViT-L/14, with the same features and a hundred times as many operations. A training that
looks at every reference anew would spend nearly all of its time there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
from refattention.core.models import vision as readers
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from world import export, vision


class ClipVision:
    """The encoder as CLIPVisionLoader would give it."""

    image_size = vision.SIZE
    image_mean, image_std = vision.MEAN.tolist(), vision.DEVIATION.tolist()
    config = {"patch_size": vision.PATCH, "hidden_size": vision.FULL_WIDTH}

    def __init__(self, path: Path) -> None:
        stored, self.model = load_file(path), vision.VisionEncoder().eval()
        self.model.load_state_dict({name: stored[export.in_host(name)] for name in self.model.state_dict()})
        self.load_device = comfy.model_management.text_encoder_device()
        self.patcher = comfy.model_patcher.ModelPatcher(self.model, self.load_device, self.load_device)


def read(model: vision.VisionEncoder, pixels: Tensor, layer: int) -> Tensor:
    """Features (B, 256, 1024) of pictures as PatchEncoder prepares them, wide with zeros."""
    return F.pad(model.read(pixels), (0, vision.FULL_WIDTH - vision.WIDTH))


def load_clip_vision(path: Path) -> Any:
    """The encoder."""
    return ClipVision(path)


readers.READERS[vision.VisionEncoder] = lambda model: model.layers, read
