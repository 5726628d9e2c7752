"""Refine-by-Align (arXiv 2412.00306), stage by stage: alignment and refinement as nodes of their own."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..core.patches.sampling import Sampling
from ..core.refine_by_align.match import Box
from ..core.refine_by_align.repair import Paint, summary
from ..core.refine_by_align.window import artifacts
from . import align_inputs as common
from . import align_run
from .shared import seed_input


class RefineAlign(io.ComfyNode):
    """Finds the place in a reference that shows the same as a masked area."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to the host."""
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
            ],
            outputs=[
                *common.alignment_outputs(),
                io.Image.Output(display_name="crop", tooltip="The box cut out of the reference, for Refine Region."),
            ],
        )

    @classmethod
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
    ) -> io.NodeOutput:
        """Returns the heat map, the place as box, crop and mask, and whether it is a match."""
        node = "RefineAlign"
        image, reference = (
            align_run.one_picture(each, name) for each, name in ((image, "image"), (reference_image, "reference_image"))
        )
        stages = align_run.repair(node, model, vae, positive, (context, working_size, 0), adapter, clip_vision)
        search = align_run.search(node, model, (timesteps, layers, seed), (threshold, margin, minimum_contrast))
        (case,) = align_run.cases(node, image, mask, reference, reference_mask)
        areas = artifacts(case.mask, stages.work, is_together=True)
        matches = [stages.align(case, area, search) for area in areas]
        box = matches[0].box if matches else Box(0, 0, reference.shape[2], reference.shape[1])
        heat, place, matched, warning = summary(matches, reference)
        align_run.log_warning(node, warning)
        return io.NodeOutput(heat, asdict(box), place, matched, warning, box.cut(reference))


class RefineRegion(io.ComfyNode):
    """Paints a masked area anew with a reference in view."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to the host."""
        return io.Schema(
            node_id="RefineRegion",
            display_name="Refine Region",
            category="image/transform",
            description=(
                "Paints the masked area of a picture anew while its self-attention also looks at a reference, such as "
                "the crop of Refine Align. Everything farther from the mask than the feather stays bit by bit."
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
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The picture with the masked area painted anew.")],
        )

    @classmethod
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
    ) -> io.NodeOutput:
        """Returns the repaired pictures."""
        node = "RefineRegion"
        stages = align_run.repair(node, model, vae, positive, (context, working_size, feather), adapter, clip_vision)
        sampling = Sampling(seed, steps, cfg, sampler_name, scheduler, denoise)
        paint = Paint(negative, strength, sampling)
        cases = align_run.cases(node, image, mask, reference_image)
        done = stages.repair(cases, areas == common.TOGETHER, None, paint)
        return io.NodeOutput(torch.cat([repaired for repaired, _ in done]))
