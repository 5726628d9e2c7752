"""A host on which the pack's templates run with the models that were trained on the drawn world."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from demo_host import DEMO_PACK, demo_module
from host import PACK_NAME, ROOT, HeadlessHost

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from refattention_demo.world.record import Record

draw, models, vision = (demo_module(name) for name in ("world.draw", "world.models", "vision"))
# ImageScaleToTotalPixels counts in 1024 x 1024
MEGAPIXELS = draw.SIZE**2 / 1024**2
STEPS, GUIDANCE = 12, 4.0
# What every template is run with, by the class of its nodes
SMALL: dict[str, dict[str, Any]] = {
    "EmptyLatentImage": {"width": draw.SIZE, "height": draw.SIZE},
    "ImageScaleToTotalPixels": {"megapixels": MEGAPIXELS},
    "KSampler": {"steps": STEPS, "cfg": GUIDANCE},
    "RefDropRecord": {"steps": STEPS, "cfg": GUIDANCE},
    "SamplerCustom": {"cfg": GUIDANCE},
}


class WorldHost(HeadlessHost):
    """A headless ComfyUI with the pack and the trained models.

    Args:
        weights: the folder of the compact files.
        packs: further ones, as HeadlessHost takes them.
    """

    def __init__(
        self, weights: Path = models.FOLDER, base: Path | None = None, packs: Mapping[str, Path] | None = None
    ) -> None:
        super().__init__({PACK_NAME: ROOT, DEMO_PACK: ROOT / "demo", **(packs or {})}, base)
        # In models as small as these a second thread mostly waits: with other programs about, for minutes.
        self.environment["OMP_NUM_THREADS"] = "1"
        models.write(self.base / "models", weights)

    def __enter__(self) -> WorldHost:
        super().__enter__()
        return self

    def run(self, prompt: Mapping[str, Any], timeout: float = 600.0) -> dict[str, Any]:
        """As HeadlessHost's, with a quicker loader of the vision encoder that gives the same."""
        quick = {
            name: {**node, "class_type": vision.SHORT_LOADER} if node["class_type"] == "CLIPVisionLoader" else node
            for name, node in prompt.items()
        }
        return super().run(quick, timeout)

    def put_picture(self, name: str, record: Record) -> str:
        """Draws a picture into the input folder and returns the name that LoadImage knows it by."""
        return self.put(name, draw.picture(record))

    def put(self, name: str, pixels: NDArray[np.uint8], hole: NDArray[np.bool_] | None = None) -> str:
        """The same for pixels (H, W, 3), or a map (H, W); `hole` becomes LoadImage's mask."""
        if hole is not None:
            pixels = np.dstack([pixels, np.where(hole, 0, 255).astype(np.uint8)])
        Image.fromarray(pixels).save(self.base / "input" / f"{name}.png")
        return f"{name}.png"

    def input(self, file: str) -> Path:
        """Where a picture lies that was put."""
        return self.base / "input" / file

    def paint(self, workflow: Mapping[str, Any], target: Path) -> Path:
        """Runs a workflow and copies the picture that it saves."""
        shutil.copyfile(self.images(self.run(workflow))[0], target)
        return target

    def all_pictures(self, workflow: Mapping[str, Any], *nodes: str) -> list[NDArray[np.float32]]:
        """Runs a workflow; of each node of these ids, (B, H, W, 3) in [0, 1] of what it shows or saves."""
        outputs = self.run(workflow)["outputs"]
        files = [self.images({"outputs": {node: outputs[node]}}) for node in nodes]
        return [
            np.stack([np.asarray(Image.open(file).convert("RGB"), np.float32) / 255 for file in each]) for each in files
        ]

    def pictures(self, workflow: Mapping[str, Any], node: str) -> NDArray[np.float32]:
        """The same of one node."""
        return self.all_pictures(workflow, node)[0]

    def saved(self, workflow: Mapping[str, Any]) -> NDArray[np.float32]:
        """The same of what its first SaveImage saves."""
        return self.pictures(workflow, node_id(workflow, "SaveImage"))


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


def small(workflow: dict[str, Any], prompt: str, seed: int) -> dict[str, Any]:
    """A template's workflow at the world's size, with a prompt that the trained text encoder can read."""
    inputs(workflow, "CLIPTextEncode", "Positive prompt")["text"] = prompt
    inputs(workflow, "CLIPTextEncode", "Negative prompt")["text"] = ""
    inputs(workflow, "KSampler")["seed"] = seed
    for node in workflow.values():
        node["inputs"].update(SMALL.get(node["class_type"], {}))
    return workflow


def node_id(workflow: Mapping[str, Any], class_type: str) -> str:
    """The id of the first node of that class."""
    return next(name for name, node in workflow.items() if node["class_type"] == class_type)


def node_titled(workflow: Mapping[str, Any], title: str) -> str:
    """The id of the first node of that title."""
    return next(name for name, node in workflow.items() if node["_meta"]["title"] == title)
