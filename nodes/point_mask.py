"""PointMask: the point-supervised selection of P3S-Diffusion (arXiv 2412.19533)."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..core.models.vision import FITS, RESOLUTIONS, PatchEncoder
from ..core.pictures import gate
from ..core.point_mask import coordinates, frames
from ..core.point_mask.selection import Refinement
from .connected import checked
from .previews import temporary

POSITIVE, NEGATIVE = coordinates.POSITIVE, coordinates.NEGATIVE


class PointMask(io.ComfyNode):
    """A mask of the subject under the positive points, without what looks like it under the negative ones."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="PointMask",
            display_name="Point Mask",
            category="image/mask",
            description=(
                "Two clicks select one of two look-alike subjects: a positive point on the subject, a negative one on "
                "the other. Patches of the picture that a vision encoder finds similar to the positive and unlike the "
                "negative points become the mask. Click in the editor, or give the points as JSON."
            ),
            search_aliases=[
                "p3s",
                "points",
                "point editor",
                "click mask",
                "subject points",
                "select subject",
                "segment",
            ],
            inputs=[*_main_inputs(), *_advanced_inputs()],
            outputs=_outputs(),
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, positive_coords: str | None = None) -> bool | str:
        """Refuses text that holds no points before the workflow starts; linked text is seen only later.

        The host reports what is wrong once for each input that is named here, so it is one; the other waits for
        `execute`.
        """
        try:
            if positive_coords is not None:
                _require_points(coordinates.parse(positive_coords, POSITIVE))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    @checked
    def execute(
        cls,
        image: torch.Tensor,
        positive_coords: str,
        negative_coords: str,
        threshold: float,
        grow: int,
        feather: int,
        radius: int,
        fit: str,
        resolution: str,
        layer: int,
        smoothing: float,
        minimum_area: int,
        rescale_similarity: bool,
        clip_vision: Any | None = None,
    ) -> io.NodeOutput:
        """Returns the masks, the cleaned picture, the heat map and the points."""
        image = gate.picture(image, "image")
        positive, negative = _read(positive_coords, POSITIVE, image), _read(negative_coords, NEGATIVE, image)
        _require_points(positive)
        settings = Refinement(rescale_similarity, smoothing, threshold, minimum_area, grow, feather)
        encoder = None if clip_vision is None else PatchEncoder(clip_vision, layer, fit, resolution)
        found = frames.point_masks(image, positive, negative, encoder, radius, settings)
        texts = coordinates.dump(positive), coordinates.dump(negative)
        preview = _preview(image[0], found.masks[0], found.heat[0], found.note)
        return io.NodeOutput(found.masks, found.opposite, found.cleaned, found.heat, *texts, ui=preview)


def _read(text: str, name: str, image: torch.Tensor) -> list[coordinates.Points]:
    points = coordinates.parse(text, name)
    coordinates.require_inside(points, image.shape[2], image.shape[1], name)
    return points


def _require_points(positive: list[coordinates.Points]) -> None:
    if not any(positive):
        raise ValueError(
            f"{POSITIVE} holds no point, but at least one on the subject is needed. Click on it in the point editor of "
            "Point Mask; where that is inside a subgraph or blueprint, open it first."
        )


def _preview(image: torch.Tensor, mask: torch.Tensor, heat: torch.Tensor, note: str) -> dict[str, Any]:
    """What the editor shows of the first frame; `width` and `height` are the pixels that points refer to."""
    height, width = mask.shape
    pictures = {"picture": image, "mask": mask, "similarity": heat}
    files = {name: temporary(each, f"PointMask_{name}") for name, each in pictures.items()}
    return {"refattention_points": [{**files, "width": width, "height": height, "note": note}]}


def _main_inputs() -> list[io.Input]:
    return [
        io.Image.Input(
            "image",
            tooltip="Picture the points refer to. The editor shows it; it is never stored in the workflow. A batch "
            "takes the same points for every frame, or one list of points per frame.",
        ),
        io.String.Input(
            POSITIVE,
            default="[]",
            advanced=True,
            tooltip='Points on the subject as [{"x": 120, "y": 80}, ...] in pixels, or one such list per frame. The '
            "editor writes them; the points of KJNodes and SAM3 nodes fit.",
        ),
        io.String.Input(
            NEGATIVE,
            default="[]",
            advanced=True,
            tooltip="Points on what looks like the subject but is not wanted, in the same form. May stay empty.",
        ),
        io.Float.Input(
            "threshold",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Where the heat map is cut, as a share of its range. Higher: smaller mask. 0 finds it by itself "
            "(Otsu's method).",
        ),
        _pixels("grow", 0, -512, 512, "Moves the mask's edge outwards, or inwards if negative, in pixels."),
        _pixels("feather", 0, 0, 512, "Width of the soft edge in pixels. 0 gives a hard edge."),
        _pixels("radius", 16, 1, 4096, "Without clip_vision: radius of the disc around each point, in pixels."),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="Encoder whose patches are compared: CLIP, SigLIP or DINO, from Load CLIP Vision. Unconnected: "
            "only discs around the points.",
        ),
    ]


def _advanced_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "fit",
            options=FITS,
            default=FITS[0],
            advanced=True,
            tooltip="How a picture that is not square meets the encoder's square: stretched to it, padded to it, or "
            "read in overlapping tiles (most detail, takes longer).",
        ),
        io.Combo.Input(
            "resolution",
            options=list(RESOLUTIONS),
            default="native",
            advanced=True,
            tooltip="Side of the encoder's square against the one it was made for. More gives finer patches and takes "
            "longer; features get less reliable far from native.",
        ),
        io.Int.Input(
            "layer",
            default=-2,
            min=-64,
            max=63,
            advanced=True,
            tooltip="The encoder's block whose hidden states are compared, counted from the end if negative: -2 is the "
            "penultimate. Earlier blocks see more of colour and texture.",
        ),
        io.Float.Input(
            "smoothing",
            default=0.7,
            min=0.0,
            max=8.0,
            step=0.1,
            advanced=True,
            tooltip="Sigma of the Gaussian filter over the heat map, in patches of the encoder. 0 turns it off.",
        ),
        _pixels(
            "minimum_area",
            0,
            0,
            1 << 24,
            "Regions smaller than this are dropped, smaller holes filled, in pixels.",
            True,
        ),
        io.Boolean.Input(
            "rescale_similarity",
            default=True,
            advanced=True,
            tooltip="Stretches the similarities to 0-1 over the picture before both signs are combined. "
            "Off takes the raw cosines, as the paper states it, with which look-alikes lose against the background.",
        ),
    ]


def _pixels(name: str, default: int, low: int, high: int, tooltip: str, advanced: bool = False) -> io.Input:
    return io.Int.Input(name, default=default, min=low, max=high, advanced=advanced, tooltip=tooltip)


def _outputs() -> list[io.Output]:
    return [
        io.Mask.Output(display_name="mask", tooltip="The subject under the positive points, white = selected."),
        io.Mask.Output(display_name="negative_mask", tooltip="The same for the negative points; black without any."),
        io.Image.Output(
            display_name="cleaned",
            tooltip="The picture with the negative subject filled from its surroundings. Equal to image elsewhere.",
        ),
        io.Image.Output(display_name="similarity", tooltip="Heat map of how well each place fits, dark to bright."),
        io.String.Output(display_name=POSITIVE, tooltip="The positive points as JSON, for SAM3 and KJNodes nodes."),
        io.String.Output(display_name=NEGATIVE, tooltip="The negative points as JSON, for SAM3 and KJNodes nodes."),
    ]
