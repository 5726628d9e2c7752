"""Stand-ins for the nodes of other packs that a template names: same ids, inputs and outputs, and fixed results.

They let the templates be opened and run where those packs are not installed.
"""

from __future__ import annotations

from typing import Any

import numpy
import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from . import tryon

LABELS = (
    *("background", "hat", "hair", "sunglasses", "upper_clothes", "skirt", "pants", "dress", "belt", "left_shoe"),
    *("right_shoe", "face", "left_leg", "right_leg", "left_arm", "right_arm", "bag", "scarf"),
)
SWITCH = ["enable", "disable"]
# Shoulder, elbow and wrist of both arms of the demo's person, in pixels of its picture
ARMS = {2: (100, 215), 3: (50, 320), 4: (60, 480), 5: (290, 215), 6: (330, 300), 7: (300, 380), 0: (215, 140)}


def _tensor(picture: Image.Image, size: tuple[int, int], batch: int) -> Tensor:
    scaled = picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
    return torch.from_numpy(numpy.asarray(scaled).astype(numpy.float32) / 255).expand(batch, -1, -1, -1)


def _at(image: Tensor, resolution: int) -> tuple[int, int]:
    """Width and height with a short side of `resolution`."""
    height, width = image.shape[1:3]
    scale = resolution / min(height, width)
    return round(width * scale), round(height * scale)


class DensePosePreprocessor(io.ComfyNode):
    """In place of comfyui_controlnet_aux's DensePose Estimator."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="DensePosePreprocessor",
            display_name="DensePose Estimator",
            category="demo",
            inputs=[
                io.Image.Input("image"),
                io.Combo.Input(
                    "model",
                    options=["densepose_r50_fpn_dl.torchscript", "densepose_r101_fpn_dl.torchscript"],
                    optional=True,
                ),
                io.Combo.Input("cmap", options=["Viridis (MagicAnimate)", "Parula (CivitAI)"], optional=True),
                io.Int.Input("resolution", default=512, min=64, max=16384, step=64, optional=True),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, image: Tensor, model: str = "", cmap: str = "", resolution: int = 512) -> io.NodeOutput:
        """Returns the demo's person, in the colours that are the default."""
        picture = tryon.densepose() if "Parula" in cmap else tryon.densepose_viridis()
        return io.NodeOutput(_tensor(picture, _at(image, resolution), len(image)))


class DWPreprocessor(io.ComfyNode):
    """In place of comfyui_controlnet_aux's DWPose Estimator."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="DWPreprocessor",
            display_name="DWPose Estimator",
            category="demo",
            inputs=[
                io.Image.Input("image"),
                *(io.Combo.Input(f"detect_{part}", options=SWITCH, optional=True) for part in ("hand", "body", "face")),
                io.Int.Input("resolution", default=512, min=64, max=16384, step=64, optional=True),
                io.Combo.Input(
                    "bbox_detector", options=["None", "yolox_l.onnx"], default="yolox_l.onnx", optional=True
                ),
                io.Combo.Input("pose_estimator", options=["dw-ll_ucoco_384_bs5.torchscript.pt"], optional=True),
                io.Combo.Input("scale_stick_for_xinsr_cn", options=SWITCH[::-1], optional=True),
            ],
            outputs=[io.Image.Output(), io.Custom("POSE_KEYPOINT").Output()],
        )

    @classmethod
    def execute(cls, image: Tensor, resolution: int = 512, **options: Any) -> io.NodeOutput:
        """Returns a black picture and the arms of the demo's person."""
        width, height = image.shape[2], image.shape[1]
        points = numpy.zeros((18, 3))
        for number, (x, y) in ARMS.items():
            points[number] = x * width / tryon.SIZE[0], y * height / tryon.SIZE[1], 1
        people = [{"pose_keypoints_2d": points.ravel().tolist()}]
        frame = {"people": people, "canvas_width": width, "canvas_height": height}
        return io.NodeOutput(torch.zeros(len(image), *_at(image, resolution)[::-1], 3), [frame] * len(image))


class CozyHumanParserATR(io.ComfyNode):
    """In place of human-parser-comfyui-node's parser with ATR labels."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="Cozy Human Parser ATR",
            display_name="Cozy Human Parser ATR",
            category="demo",
            inputs=[io.Image.Input("image"), *(io.Boolean.Input(label, default=False) for label in LABELS)],
            outputs=[io.Mask.Output("mask"), io.Image.Output("map")],
        )

    @classmethod
    def execute(cls, image: Tensor, **labels: bool) -> io.NodeOutput:
        """Returns the demo's parsing map as label colours."""
        numbers = tryon.parsing().getchannel(0)
        numbers = numbers.point([label if label < len(LABELS) else 11 for label in range(256)])  # ATR has no neck
        drawn = numbers.convert("P")
        drawn.putpalette([_bits(label, channel) for label in range(len(LABELS)) for channel in range(3)])
        mask = torch.zeros(1, *image.shape[1:3])
        return io.NodeOutput(mask, _tensor(drawn, (image.shape[2], image.shape[1]), 1))


def _bits(label: int, channel: int) -> int:
    """A channel of a label's customary colour."""
    return sum((label >> (3 * place + channel) & 1) << (7 - place) for place in range(8))


NODES = [DensePosePreprocessor, DWPreprocessor, CozyHumanParserATR]
