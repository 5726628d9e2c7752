"""AttentionProbe: what the self-attention of a model sees of one picture in another."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..core.pictures.sheet import Cell, labelled_sheet, with_rings
from ..core.point_mask import coordinates
from ..core.refine_by_align import probe
from ..core.refine_by_align.match import heat_picture
from ..core.refine_by_align.window import scaled
from . import align_inputs as common
from . import align_run
from .previews import temporary
from .shared import require_latent_of, seed_input

POINTS = coordinates.POSITIVE
COLUMNS, CELL = 6, 224  # of the sheet, in pictures and in pixels
SHADE = 0.35  # brightness of what is outside of the spot's mask on the sheet


class AttentionProbe(io.ComfyNode):
    """Shows where each place of a picture looks on a reference."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to the host."""
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
                    display_name="heat_map", tooltip="Where the spot looks, over the reference; mean of the layers."
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
    ) -> io.NodeOutput:
        """Returns the heat map, the heat and the sheet, and gives the panel its maps."""
        node = "AttentionProbe"
        pictures = align_run.one_picture(image, "image"), align_run.one_picture(reference_image, "reference_image")
        size, reference_size = ((each.shape[1], each.shape[2]) for each in pictures)
        points, spot = _points(positive_coords, size), _spot(mask, pictures[0])
        look = align_run.look(model, timesteps, layers, seed, node)
        latents = [
            require_latent_of(model, vae.encode(scaled(each, working_size)), "What vae makes of a picture")
            for each in pictures
        ]
        sizes, queries = (size, reference_size), probe.spot_of(points, spot, size)
        found = probe.probe(model, positive, (latents[0], latents[1]), sizes, look, queries, node)
        heat = probe.heat(found.spot, reference_size)
        overlay = heat_picture(heat, pictures[1])
        first = [("picture", _marked(pictures[0][0], points, spot)), ("mean", overlay[0])]
        small = scaled(pictures[1], CELL)
        cells = {
            name: heat_picture(probe.heat(each, (small.shape[1], small.shape[2])), small)[0]
            for name, each in found.layers.items()
        }
        panel = _panel(pictures, spot, found.grid, *probe.mosaic(found))
        return io.NodeOutput(overlay, heat.unsqueeze(0), _sheet(first, cells), ui=panel)


def _points(text: str, size: tuple[int, int]) -> coordinates.Points:
    """The chosen points, or the middle of the picture."""
    (points,) = coordinates.for_frames(coordinates.parse(text, POINTS), 1, POINTS)
    coordinates.require_inside([points], size[1], size[0], POINTS)
    return points or [(size[1] // 2, size[0] // 2)]


def _spot(mask: Tensor | None, image: Tensor) -> Tensor | None:
    if mask is None:
        return None
    spot = align_run.one_mask(mask, image)
    if not spot.any():
        raise ValueError("mask has nothing white, but it must show the spot. Paint it, or leave the input unconnected.")
    return spot


def _marked(picture: Tensor, points: coordinates.Points, spot: Tensor | None) -> Tensor:
    if spot is None:
        return with_rings(picture, points)
    return picture * (SHADE + (1 - SHADE) * spot).unsqueeze(-1)


def _sheet(first: list[Cell], cells: dict[tuple[int, str], Tensor]) -> Tensor:
    """The first line, then for each timestep its layers in the order in which they run."""
    lines = [first]
    for timestep in dict.fromkeys(timestep for timestep, _ in cells):
        row = [(f"{layer}, t = {timestep}", cell) for (each, layer), cell in cells.items() if each == timestep]
        lines += [row[start : start + COLUMNS] for start in range(0, len(row), COLUMNS)]
    tallest = max(CELL * len(picture) // max(picture.shape) for _, picture in first)
    return labelled_sheet(lines, (max(tallest, 1), CELL))


def _panel(
    pictures: tuple[Tensor, Tensor], spot: Tensor | None, grid: tuple[int, int], maps: Tensor, most: float
) -> dict[str, Any]:
    """What the panel shows; `most` is the attention at the brightest pixel of the maps."""
    files = {"picture": pictures[0][0], "reference": pictures[1][0], "maps": maps}
    if spot is not None:
        files["mask"] = spot
    message: dict[str, Any] = {name: temporary(each, f"AttentionProbe_{name}") for name, each in files.items()}
    for name, each in zip(("size", "reference_size"), pictures, strict=True):
        message[name] = {"width": each.shape[2], "height": each.shape[1]}
    rows, columns = grid
    message["grid"] = {"width": columns, "height": rows}
    message["reference_grid"] = {"width": maps.shape[1] // columns, "height": maps.shape[0] // (rows + 1)}
    return {"refattention_probe": [{**message, "most": most}]}


def _inputs() -> list[io.Input]:
    return [
        *common.model_inputs("Prompt with which the model sees both pictures."),
        io.Image.Input("image", tooltip="Picture from whose places the model looks, of any size."),
        io.Image.Input("reference_image", tooltip="Picture that it looks at, of any size; may be the same."),
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
        common.working_size_input("Longer side, in pixels, at which the model sees both pictures. 512 for SD1.5."),
        seed_input("Seed of the noise under which attention is read."),
    ]
