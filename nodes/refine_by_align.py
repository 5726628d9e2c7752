"""Refine-by-Align: Reference-Guided Artifacts Refinement through Semantic Alignment (arXiv 2412.00306), in one node."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..core.patches.sampling import Sampling
from ..core.refine_by_align.back_ends import AUTO
from ..core.refine_by_align.match import Finding
from ..core.refine_by_align.observe import parse_look
from ..core.refine_by_align.repair import Paint, Search, report
from ..core.refine_by_align.window import Work
from . import refine_by_align_inputs as common
from .connected import checked

NODE = "Refine by Align"


class RefineByAlign(io.ComfyNode):
    """Repairs an artifact from a reference: finds the matching place in it and repaints the area."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="RefineByAlign",
            display_name="Refine by Align",
            category="image/transform",
            description=(
                "Repairs a masked artifact, such as a wrong logo, from a picture that shows it correctly: finds the "
                "matching place in the reference, then repaints the area with that place in view. Everything "
                "farther from the mask than the feather stays bit for bit."
            ),
            search_aliases=[
                "artifact fix",
                "fix logo",
                "repair",
                "restore detail",
                "refine by align",
                "detailer",
                "inpaint",
            ],
            is_experimental=True,
            inputs=[
                *common.model_inputs(),
                common.negative_input(),
                *common.picture_inputs(),
                io.Image.Input(
                    "reference_image", tooltip="Picture of the same subject without the artifact, of any size."
                ),
                common.reference_mask_input(),
                *common.sampling_inputs(),
                *common.work_inputs(),
                common.areas_input(),
                *common.align_inputs(),
                *common.adapter_inputs(),
                common.back_end_input(),
                common.more_references_input(),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The repaired picture."),
                *common.alignment_outputs(),
            ],
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
        timesteps: str,
        layers: str,
        threshold: float,
        margin: float,
        minimum_contrast: float,
        reference_mask: Tensor | None = None,
        adapter: Any = None,
        clip_vision: Any = None,
        back_end: str = AUTO,
        more_references: Tensor | None = None,
    ) -> io.NodeOutput:
        """Returns the repaired pictures and what was found in the reference."""
        work = Work(context, common.size_of(model, working_size, adapter), feather)
        stages = common.stages(model, vae, positive, work, adapter, clip_vision, NODE, back_end, negative)
        finding = Finding(threshold=threshold, margin=margin, minimum_contrast=minimum_contrast)
        look = parse_look(model, timesteps, layers, seed, NODE, adapter and adapter.origin.look)
        search = Search(look, finding)
        pictures = common.cases_of(image, mask, reference_image, reference_mask, more_references)
        paint = Paint(negative, strength, Sampling(seed, steps, cfg, sampler_name, scheduler, denoise))
        repaired, matches = stages.repair(pictures, areas == common.TOGETHER, search, paint)
        found = report(pictures, matches)
        boxes = [[asdict(box) for box in each] for each in found.boxes]
        of_all = boxes[0] if len(boxes) == 1 else boxes
        return io.NodeOutput(repaired, found.heat, of_all, found.places, found.matched, found.warning)
