"""Refine-by-Align (arXiv 2412.00306), stage by stage: alignment and refinement as nodes of their own."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..core.patches.node_text import tell
from ..core.patches.sampling import Sampling
from ..core.pictures import gate
from ..core.refine_by_align.back_ends import AUTO
from ..core.refine_by_align.match import Box, Finding
from ..core.refine_by_align.observe import parse_look
from ..core.refine_by_align.repair import EMPTY_MASK, Paint, Search, report
from ..core.refine_by_align.window import Work
from . import refine_by_align_inputs as common
from .connected import checked
from .shared import seed_input

ALIGN, REGION = "Refine Align", "Refine Region"


class RefineAlign(io.ComfyNode):
    """Finds the place in a reference that shows the same as a masked area."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="RefineAlign",
            display_name="Refine Align",
            category="image/transform",
            description=(
                "Finds the place in a reference picture that shows the same part as the masked area of another "
                "picture, by what the self-attention of the model looks at. Use its crop with Refine Region or any "
                "other method."
            ),
            search_aliases=["refine by align", "correspondence", "match", "find in reference", "attention map"],
            is_experimental=True,
            inputs=[
                *common.model_inputs(),
                *common.picture_inputs(),
                io.Image.Input("reference_image", tooltip="Picture that shows the part correctly, of any size."),
                common.reference_mask_input(),
                *common.align_inputs(),
                *common.work_inputs(with_feather=False),
                seed_input("Seed of the noise under which attention is read."),
                *common.adapter_inputs(),
                common.back_end_input(),
            ],
            outputs=[
                *common.alignment_outputs(),
                io.Image.Output(display_name="crop", tooltip="The box cut out of the reference, for Refine Region."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        vae: Any,
        positive: list[Any],
        image: Tensor,
        mask: Tensor,
        reference_image: Tensor,
        timesteps: str,
        layers: str,
        threshold: float,
        margin: float,
        minimum_contrast: float,
        context: float,
        working_size: int,
        seed: int,
        reference_mask: Tensor | None = None,
        adapter: Any = None,
        clip_vision: Any = None,
        back_end: str = AUTO,
    ) -> io.NodeOutput:
        """Returns the heat map, the place as box, crop and mask, and whether it is a match."""
        image, reference = (
            gate.one_picture(each, name) for each, name in ((image, "image"), (reference_image, "reference_image"))
        )
        work = Work(context, common.size_of(model, working_size, adapter), feather=0)
        stages = common.stages(model, vae, positive, work, adapter, clip_vision, ALIGN, back_end)
        finding = Finding(threshold=threshold, margin=margin, minimum_contrast=minimum_contrast)
        look = parse_look(model, timesteps, layers, seed, ALIGN, adapter and adapter.origin.look)
        search = Search(look, finding)
        pictures = common.cases_of(image, mask, reference, reference_mask)
        found = report(pictures, [stages.align_all(pictures[0], search)])
        whole = Box(0, 0, reference.shape[2], reference.shape[1])
        box = found.boxes[0][0] if found.boxes[0] else whole
        crop = box.cut(reference)
        return io.NodeOutput(found.heat, asdict(box), found.places, found.matched, found.warning, crop)


class RefineRegion(io.ComfyNode):
    """Repaints a masked area with a reference in view."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="RefineRegion",
            display_name="Refine Region",
            category="image/transform",
            description=(
                "Repaints the masked area of a picture while its self-attention also looks at a reference, such as "
                "the crop of Refine Align. Everything farther from the mask than the feather stays bit for bit."
            ),
            search_aliases=["refine by align", "inpaint with reference", "repair", "artifact fix", "restore detail"],
            is_experimental=True,
            inputs=[
                *common.model_inputs(),
                common.negative_input(),
                *common.picture_inputs(),
                io.Image.Input("reference_image", tooltip="What the area should look like; the crop of Refine Align."),
                *common.sampling_inputs(),
                *common.work_inputs(),
                common.areas_input(),
                *common.adapter_inputs(),
                common.back_end_input(),
                common.more_references_input(),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The picture with the masked area repainted.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        vae: Any,
        positive: list[Any],
        negative: list[Any],
        image: Tensor,
        mask: Tensor,
        reference_image: Tensor,
        strength: float,
        seed: int,
        steps: int,
        cfg: float,
        denoise: float,
        sampler_name: str,
        scheduler: str,
        context: float,
        working_size: int,
        feather: int,
        areas: str,
        adapter: Any = None,
        clip_vision: Any = None,
        back_end: str = AUTO,
        more_references: Tensor | None = None,
    ) -> io.NodeOutput:
        """Returns the repaired pictures."""
        work = Work(context, common.size_of(model, working_size, adapter), feather)
        stages = common.stages(model, vae, positive, work, adapter, clip_vision, REGION, back_end, negative)
        paint = Paint(negative, strength, Sampling(seed, steps, cfg, sampler_name, scheduler, denoise))
        pictures = common.cases_of(image, mask, reference_image, more_references=more_references)
        tell("" if all(case.mask.any() for case in pictures) else EMPTY_MASK, "Repainted with the reference in view.")
        repaired, _ = stages.repair(pictures, areas == common.TOGETHER, None, paint)
        return io.NodeOutput(repaired)
