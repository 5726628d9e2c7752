"""Leffa: DensePose of a photograph."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..core.leffa.densepose import detect, load
from ..core.pictures import gate
from .connected import checked
from .files import script_names, script_path


class LeffaDensePose(io.ComfyNode):
    """Finds a person's body parts, and where on them each pixel lies."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="LeffaDensePose",
            display_name="Leffa DensePose",
            category="image/transform",
            description=(
                "DensePose of the most certain person in a picture, with U, V and part numbers, by the TorchScript "
                "file that comfyui_controlnet_aux uses. For pose_transfer as it is; Leffa Body Map makes the others of "
                "it. A TorchScript file is a program: it is run only if you say so."
            ),
            search_aliases=["leffa", "densepose", "iuv", "uv map", "body parts", "pose transfer"],
            inputs=[
                io.Image.Input("image", tooltip="The person. Any size; the result has the same."),
                io.Combo.Input(
                    "densepose_name",
                    options=script_names(),
                    tooltip="densepose_r50_fpn_dl.torchscript or densepose_r101_fpn_dl.torchscript in models/detection "
                    "or where comfyui_controlnet_aux put it.",
                ),
                io.Boolean.Input(
                    "run_code_of_file",
                    default=False,
                    tooltip="A TorchScript file holds code, which this node runs. Switch on if you trust where you got "
                    "the file from; off refuses it.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="densepose", tooltip="U, V and part number as red, green and blue (UVI). For "
                    "Leffa Pose Transfer or Leffa Body Map."
                )
            ],
        )  # fmt: skip

    @classmethod
    @checked
    def execute(cls, image: Tensor, densepose_name: str, run_code_of_file: bool) -> io.NodeOutput:
        """Returns the DensePose pictures."""
        image = gate.picture(image, "image")
        path = script_path(densepose_name)
        if not run_code_of_file:
            raise ValueError(
                f"{densepose_name} is a TorchScript file, which holds code. If you trust where you got it from, switch "
                "run_code_of_file on."
            )
        return io.NodeOutput(detect(load(path), image))
