"""The host of the claims: the pack, and the trained world's models under the names that the templates have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from refattention_demo.families import SD15
from refattention_demo.vision import FILE_NAME as VISION_NAME
from refattention_demo.world import draw, expand
from refattention_demo.world.record import Record
from safetensors.torch import load_file, save_file
from torch import Tensor
from world.config import BASE_FILE, VISION_FILE

from demo_host import DEMO_PACK
from host import PACK_NAME, ROOT, HeadlessHost

# ImageScaleToTotalPixels counts in 1024 x 1024
MEGAPIXELS = draw.SIZE**2 / 1024**2
STEPS, GUIDANCE = 10, 4.0


class WorldHost(HeadlessHost):
    """A headless ComfyUI on which the pack's templates run with the trained world.

    Args:
        weights: the folder of the compact files.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__({PACK_NAME: ROOT, DEMO_PACK: ROOT / "demo"})
        self.has_vision = (weights / VISION_FILE).exists()
        self._write("checkpoints", SD15.file_name, expand.checkpoint(load_file(weights / BASE_FILE)))
        if self.has_vision:
            self._write("clip_vision", VISION_NAME, expand.vision(load_file(weights / VISION_FILE)))

    def __enter__(self) -> WorldHost:
        super().__enter__()
        return self

    def _write(self, folder: str, name: str, tensors: dict[str, Tensor]) -> None:
        target = self.base / "models" / folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: _half(tensor) for key, tensor in tensors.items()}, target)

    def put_picture(self, name: str, record: Record) -> str:
        """Draws a picture into the input folder and returns the name that LoadImage knows it by."""
        Image.fromarray(draw.picture(record)).save(self.base / "input" / f"{name}.png")
        return f"{name}.png"

    def pictures(self, workflow: Mapping[str, Any], node: str) -> NDArray[np.float32]:
        """Runs a workflow; (B, H, W, 3) in [0, 1] of what the node of that id shows or saves."""
        output = self.run(workflow)["outputs"][node]
        files = self.images({"outputs": {node: output}})
        return np.stack([np.asarray(Image.open(file).convert("RGB"), np.float32) / 255 for file in files])


def inputs(workflow: Mapping[str, Any], class_type: str, title: str | None = None) -> dict[str, Any]:
    """The inputs of the one node of that class, or of that class and title, to be changed in place.

    Raises: KeyError when there is none, or more than one.
    """
    found = [
        node["inputs"]
        for node in workflow.values()
        if node["class_type"] == class_type and (title is None or node["_meta"]["title"] == title)
    ]
    if len(found) != 1:
        raise KeyError(f"The workflow has {len(found)} nodes {class_type} {title or ''}, not one")
    return found[0]


def node_id(workflow: Mapping[str, Any], class_type: str) -> str:
    """The id of the first node of that class."""
    return next(name for name, node in workflow.items() if node["class_type"] == class_type)


def to_batch(pictures: NDArray[np.float32]) -> Tensor:
    """(B, H, W, 3) -> (B, 3, H, W)."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def _half(tensor: Tensor) -> Tensor:
    return (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
