"""AttentionProbe: what the self-attention of a model sees of one picture in another."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..core.patches.families.table import readable_attentions
from ..core.pictures import gate
from ..core.pictures.grid import binary_mask
from ..core.point_mask import coordinates
from ..core.refine_by_align.back_ends import AUTO, is_in_context
from ..core.refine_by_align.observe import parse_look
from ..core.refine_by_align.probe import Pictures, mosaic, probe
from ..core.refine_by_align.probe_sheet import drawn
from . import refine_by_align_inputs as common
from .connected import checked
from .previews import temporary
from .shared import encoder, seed_input

NODE = "Attention Probe"
POINTS = coordinates.POSITIVE


class AttentionProbe(io.ComfyNode):
    """Shows where each place of a picture looks on a reference."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="AttentionProbe",
            display_name="Attention Probe",
            category="model/patch/reference",
            description=(
                "Shows what a model sees of one picture in another. Queue once, then move the pointer over the "
                "picture: a heat map over the reference shows where the self-attention looks from there. The outputs "
                "show it for a chosen spot, layer by layer."
            ),
            search_aliases=["attention map", "heat map", "visualize attention", "correspondence", "explain", "align"],
            is_experimental=True,
            is_output_node=True,
            inputs=_inputs(),
            outputs=[
                io.Image.Output(
                    display_name="heat_map",
                    tooltip="Where the spot looks, over the reference or each of its frames; mean of the layers.",
                ),
                io.Mask.Output(display_name="heat", tooltip="The same without the picture, white = most looked at."),
                io.Image.Output(
                    display_name="sheet", tooltip="The spot, the mean, and every layer at every timestep, labelled."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, positive_coords: str | None = None) -> bool | str:
        """Refuses text that holds no points before the workflow starts; linked text is seen only later."""
        try:
            coordinates.parse(positive_coords or "", POINTS)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        vae: Any,
        positive: list[Any],
        image: Tensor,
        reference_image: Tensor,
        positive_coords: str,
        timesteps: str,
        layers: str,
        working_size: int,
        seed: int,
        mask: Tensor | None = None,
        back_end: str = AUTO,
        frame: int = 0,
        reference_frame: int = 0,
    ) -> io.NodeOutput:
        """Returns the heat map, the heat and the sheet, and gives the panel its maps."""
        look = parse_look(model, timesteps, layers, seed, NODE, takes_videos=True)
        accept = gate.picture if readable_attentions(model, NODE).is_video else gate.one_picture
        picture, reference = accept(image, "image"), accept(reference_image, "reference_image")
        _require_frame(frame, "frame", picture, "image")
        _require_frame(reference_frame, "reference_frame", reference, "reference_image")
        size = picture.shape[1], picture.shape[2]
        spot = _points(positive_coords, size), _spot(mask, size)
        given = Pictures(picture, reference, *spot, frame, reference_frame)
        encode = encoder(model, vae, "What vae makes of a picture")
        working_size = common.size_of(model, working_size)
        in_context = is_in_context(model, positive, NODE, back_end)
        found = probe(model, positive, given, encode, working_size, look, NODE, in_context)
        return io.NodeOutput(*drawn(found, given), ui=_panel(given, found.grid, *mosaic(found)))


def _require_frame(number: int, name: str, pictures: Tensor, of: str) -> None:
    if number >= len(pictures):
        raise ValueError(f"{name} is {number}, but {of} has {len(pictures)} pictures, counted from 0. Set a lower one.")


def _points(text: str, size: tuple[int, int]) -> coordinates.Points:
    """The chosen points, or the middle of the picture."""
    (points,) = coordinates.for_frames(coordinates.parse(text, POINTS), 1, POINTS)
    coordinates.require_inside([points], size[1], size[0], POINTS)
    return points or [(size[1] // 2, size[0] // 2)]


def _spot(mask: Tensor | None, size: tuple[int, int]) -> Tensor | None:
    """(H, W), 0 and 1, at the size of the picture."""
    if mask is None:
        return None
    masks = binary_mask(gate.masks(mask, "mask"), size)
    if len(masks) != 1:
        raise ValueError(f"mask holds {len(masks)} masks for one picture. Give one mask; it may have several areas.")
    if not masks.any():
        raise ValueError("mask has nothing white, but it must show the spot. Paint it, or leave the input unconnected.")
    return masks[0]


def _panel(given: Pictures, grid: tuple[int, int], maps: Tensor, most: float) -> dict[str, Any]:
    """What the panel shows; `most` is the attention at the brightest pixel of the maps."""
    shown = given.picture[given.frame], given.reference[given.reference_frame]
    files = {"picture": shown[0], "reference": shown[1], "maps": maps}
    if given.spot is not None:
        files["mask"] = given.spot
    message: dict[str, Any] = {name: temporary(each, f"AttentionProbe_{name}") for name, each in files.items()}
    for name, each in (("size", given.picture), ("reference_size", given.reference)):
        message[name] = {"width": each.shape[2], "height": each.shape[1]}
    rows, columns = grid
    message["grid"] = {"width": columns, "height": rows}
    message["reference_grid"] = {"width": maps.shape[1] // columns, "height": maps.shape[0] // (rows + 1)}
    return {"refattention_probe": [{**message, "most": most}]}


def _inputs() -> list[io.Input]:
    return [
        *common.model_inputs("Prompt with which the model sees both pictures.", of="pictures or videos"),
        io.Image.Input(
            "image",
            tooltip="Picture from whose places the model looks, of any size. For a model of videos: the frames of a "
            "video.",
        ),
        io.Image.Input(
            "reference_image",
            tooltip="Picture that it looks at, of any size; may be the same. For a model of videos: one picture or the "
            "frames of a video.",
        ),
        io.String.Input(
            POINTS,
            default="[]",
            advanced=True,
            tooltip='The spot as [{"x": 120, "y": 80}] in pixels; of several points the mean. A click in the panel '
            "writes it. Without any: the middle of the picture.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="An area as the spot, white = part of it; takes the place of the points.",
        ),
        *common.look_inputs(),
        common.working_size_input("Longer side, in pixels, at which the model sees both pictures."),
        seed_input("Seed of the noise under which attention is read."),
        common.back_end_input(),
        _frame_input("frame", "Model of videos: which picture of image the spot is in, counted from 0."),
        _frame_input(
            "reference_frame",
            "Model of videos: which picture of reference_image the panel and the sheet show, counted from 0. heat_map "
            "and heat have all of them.",
        ),
    ]


def _frame_input(name: str, tooltip: str) -> io.Input:
    return io.Int.Input(name, default=0, min=0, max=9999, optional=True, advanced=True, tooltip=tooltip)
