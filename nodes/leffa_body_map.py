"""Leffa: the DensePose picture that a checkpoint needs."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..core.leffa.body_map import FORMATS, VUI, convert
from ..core.leffa.model import require_leffa
from ..core.pictures import gate
from .connected import checked

AUTO, AS_MODEL = "auto", "as the model needs"


class LeffaBodyMap(io.ComfyNode):
    """Makes the DensePose picture that a Leffa model needs of the one that is there."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="LeffaBodyMap",
            display_name="Leffa Body Map",
            category="image/transform",
            description=(
                "Turns a DensePose picture of any kind (colours of Parula or Viridis, part numbers, IUV, UVI) into the "
                "one that the connected Leffa model was trained with, and brings it to the size of image."
            ),
            search_aliases=["leffa", "densepose", "iuv", "body parts", "parula", "viridis", "body map"],
            inputs=[
                io.Image.Input(
                    "densepose",
                    tooltip="DensePose picture, also from a lossy or scaled file. Parts are read from all kinds; U and "
                    "V, which pose_transfer needs, only from IUV and UVI.",
                ),
                io.Combo.Input(
                    "format",
                    options=[AS_MODEL, *FORMATS],
                    default=AS_MODEL,
                    tooltip="Kind of picture to make: the one that the connected model was trained with, or a certain "
                    "one.",
                ),
                io.Combo.Input(
                    "kind",
                    options=[AUTO, *FORMATS, VUI],
                    default=AUTO,
                    advanced=True,
                    tooltip="Kind of picture that densepose is. auto tells it by the content, with one exception: VUI, "
                    "as DensePose's own tools save IUV with OpenCV, looks like UVI.",
                ),
                io.Model.Input(
                    "model", optional=True, tooltip="From Leffa Loader; says which kind of picture it needs."
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The person that densepose was made from; the result has its size. Unconnected: the size "
                    "of densepose.",
                ),
            ],
            outputs=[io.Image.Output(display_name="densepose", tooltip="For Leffa Try-On or Leffa Pose Transfer.")],
        )

    @classmethod
    @checked
    def execute(
        cls, densepose: Tensor, format: str, kind: str, model: Any = None, image: Tensor | None = None
    ) -> io.NodeOutput:
        """Returns the DensePose pictures in the other form."""
        densepose = gate.picture(densepose, "densepose")
        image = None if image is None else gate.picture(image, "image")
        if format == AS_MODEL:
            if model is None:
                raise ValueError("format asks for what the model needs, but none is connected. Connect Leffa Loader.")
            format = require_leffa(model, "Leffa Body Map").body_map or format
        if format == AS_MODEL:
            raise ValueError("The model does not say which kind of picture it needs. Choose one as format.")
        size = None if image is None else (image.shape[1], image.shape[2])
        return io.NodeOutput(convert(densepose, format, None if kind == AUTO else kind, size))
