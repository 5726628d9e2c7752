"""Refine-by-Align: Reference-Guided Artifacts Refinement through Semantic Alignment (arXiv 2412.00306), in one node."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..core.patches.sampling import Sampling
from ..core.refine_by_align.repair import Paint, summary
from . import align_inputs as common
from . import align_run


class RefineByAlign(io.ComfyNode):
    """Repairs an artifact from a reference: finds the matching place in it and paints the area anew."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to the host."""
        return io.Schema(
            node_id="RefineByAlign",
            display_name="Refine by Align",
            category="image/transform",
            description=(
                "Repairs a masked artifact, such as a wrong logo, from a picture that shows it correctly: finds the "
                "matching place in the reference, then paints the area anew with that place in view. Everything "
                "farther from the mask than the feather stays bit by bit."
            ),
            search_aliases=["artifact fix", "repair", "restore detail", "refine by align", "detailer", "inpaint"],
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
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The repaired picture."),
                *common.alignment_outputs(),
            ],
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
        timesteps: str,
        layers: str,
        threshold: float,
        margin: float,
        minimum_contrast: float,
        reference_mask: Tensor | None = None,
        adapter: Any = None,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        """Returns the repaired pictures and what was found in the reference."""
        node = "RefineByAlign"
        stages = align_run.repair(node, model, vae, positive, (context, working_size, feather), adapter, clip_vision)
        search = align_run.search(node, model, (timesteps, layers, seed), (threshold, margin, minimum_contrast))
        cases = align_run.cases(node, image, mask, reference_image, reference_mask)
        paint = Paint(negative, strength, Sampling(seed, steps, cfg, sampler_name, scheduler, denoise))
        done = stages.repair(cases, areas == common.TOGETHER, search, paint)
        found = [summary(matches, case.reference) for case, (_, matches) in zip(cases, done, strict=True)]
        heats, places, matched, warnings = zip(*found, strict=True)
        boxes = [[asdict(match.box) for match in matches] for _, matches in done]
        warning = align_run.joined(warnings)
        align_run.log_warning(node, warning)
        return io.NodeOutput(
            torch.cat([repaired for repaired, _ in done]),
            torch.cat(heats),
            boxes[0] if len(boxes) == 1 else boxes,
            torch.cat(places),
            all(matched),
            warning,
        )
