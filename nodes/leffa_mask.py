"""Leffa: what to repaint, and pasting it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..core.leffa import masks as agnostic
from ..core.leffa import parsing as maps
from ..core.leffa.keypoints import frames_of
from ..core.leffa.masks import CLEAN, DRESS_CODE, VITON_HD
from ..core.leffa.repaint import paste_exact, paste_official
from ..core.pictures import gate
from ..core.pictures.grid import unpadded
from .connected import checked
from .leffa import require_batch

EXACT, OFFICIAL = "exact", "official"


class LeffaMask(io.ComfyNode):
    """Garment-agnostic mask from a human-parsing map and body points."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="LeffaMask",
            display_name="Leffa Mask",
            category="image/mask",
            description=(
                "The area that Leffa repaints for a garment, from the maps of the human-parsing and pose nodes you "
                "have: the garment with a margin, arms and neck, but not what is to stay."
            ),
            search_aliases=["leffa", "agnostic mask", "garment mask", "clothes mask", "try on mask"],
            inputs=[
                io.Image.Input(
                    "parsing",
                    tooltip="Human-parsing map of the person, as the parser gives it: label numbers as grey values, or "
                    "the customary label colours (SCHP's or Graphonomy's). Not resized, or with nearest-exact.",
                ),
                io.Combo.Input(
                    "garment_type",
                    options=agnostic.GARMENTS,
                    default=agnostic.UPPER_BODY,
                    tooltip="What is put on. Dresses replaces everything from the neck to the knees.",
                ),
                io.Combo.Input(
                    "rule",
                    options=[CLEAN, VITON_HD, DRESS_CODE],
                    default=CLEAN,
                    tooltip="clean is the rule of virtual_tryon without its defect, which on a full-length figure also "
                    "masks trousers and shoes. viton_hd and dress_code are the official rules of virtual_tryon and "
                    "virtual_tryon_dc, pixel by pixel, at 384 x 512.",
                ),
                io.Combo.Input(
                    "labels",
                    options=[maps.ATR, maps.LIP, maps.AUTO],
                    default=maps.AUTO,
                    advanced=True,
                    tooltip="Data set whose label numbers the map holds: auto tells it by where the face is. ATR may "
                    "have the neck as number 18; LIP is also for CIHP and Graphonomy.",
                ),
                io.Custom("POSE_KEYPOINT").Input(
                    "keypoints",
                    optional=True,
                    tooltip="Body points from an OpenPose, DWPose or SDPose node; of several persons, those of the one "
                    "that the map shows. Unconnected (rule clean only): the arms are where the map has them.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask", tooltip="White = repainted. The official rules give 384 x 512; any size "
                    "will do for Leffa Try-On."
                )
            ],
        )  # fmt: skip

    @classmethod
    @checked
    def execute(
        cls, parsing: Tensor, garment_type: str, rule: str, labels: str, keypoints: list[dict[str, Any]] | None = None
    ) -> io.NodeOutput:
        """Returns one mask for each map."""
        parsing = gate.picture(parsing, "parsing")
        if keypoints is None and rule != CLEAN and garment_type != agnostic.LOWER_BODY:
            raise ValueError(f"The rule {rule} draws the arms from keypoints. Connect a pose detector, or use {CLEAN}.")
        frames = frames_of(keypoints)
        if len(frames) not in (1, len(parsing)):
            raise ValueError(
                f"keypoints hold {len(frames)} frames, but parsing {len(parsing)} maps. Give equal numbers."
            )
        return io.NodeOutput(agnostic.from_maps(parsing, frames, garment_type, rule, labels))


class LeffaRepaint(io.ComfyNode):
    """Pastes the generated garment into the person's picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="LeffaRepaint",
            display_name="Leffa Repaint",
            category="image/transform",
            description="Pastes what Leffa painted into the picture it was made for, with a soft edge.",
            search_aliases=["leffa", "paste", "composite", "keep background", "preserve face"],
            inputs=[
                io.Image.Input("image", tooltip="The person, as it went into Leffa Try-On. The result has its size."),
                io.Image.Input("generated", tooltip="The decoded picture from the sampler."),
                io.Mask.Input("mask", tooltip="The mask that went into Leffa Try-On, white = repainted."),
                io.Combo.Input(
                    "edge",
                    options=[EXACT, OFFICIAL],
                    default=EXACT,
                    tooltip="exact keeps every pixel outside the mask bit for bit and softens the edge inside; "
                    "official softens it on both sides, as the published code does.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The person with the generated garment.")],
        )

    @classmethod
    @checked
    def execute(cls, image: Tensor, generated: Tensor, mask: Tensor, edge: str) -> io.NodeOutput:
        """Returns the composed pictures."""
        image, mask = gate.picture(image, "image"), gate.masks(mask, "mask")
        generated = unpadded(gate.picture(generated, "generated"), image, "generated", "image")
        require_batch(image=image, generated=generated, mask=mask)
        paste = paste_exact if edge == EXACT else paste_official
        batch = max(len(image), len(generated), len(mask))
        old, new = (each.expand(batch, -1, -1, -1) for each in (image, generated))
        return io.NodeOutput(paste(old, new, mask))
