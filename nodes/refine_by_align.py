"""Refine-by-Align: Reference-Guided Artifacts Refinement through Semantic Alignment (arXiv 2412.00306), in one node."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..core.patches.sampling import Sampling
from . import align_inputs as common


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
    ) -> io.NodeOutput:
        """Returns the repaired picture and what was found in the reference."""
        node = "RefineByAlign"
        image, reference = common.one_picture(image, "image"), common.one_picture(reference_image, "reference_image")
        stages = common.repair(node, model, vae, positive, context, working_size, feather)
        look = common.look(model, timesteps, layers, seed, node)
        run, where = common.methods(node), common.searched(reference_mask)
        finding = run.Finding(threshold=threshold, margin=margin, minimum_contrast=minimum_contrast)
        sampling = Sampling(seed, steps, cfg, sampler_name, scheduler, denoise)
        found = run.artifacts(common.one_mask(mask, image), stages.work, is_together=areas == common.TOGETHER)
        image, matches = stages.repair(image, found, reference, where, look, finding, negative, strength, sampling)
        heat, places, matched, warning = run.summary(matches, reference)
        common.log_warning(node, warning)
        return io.NodeOutput(image, heat, [asdict(match.box) for match in matches], places, matched, warning)
