"""A sampling run that is recorded for RefDrop (arXiv 2405.17661): the reference is what it paints."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..core.patches import blocks as block_choice
from ..core.patches.families.table import attentions_of
from ..core.patches.node_text import text_on_node
from ..core.patches.reference_pass import Reference
from ..core.patches.sampling import Sampling, sampled_latent
from ..core.patches.unet import family
from ..core.refdrop.recorded_run import RecordedRun
from ..core.refdrop.recorder import apply_recorder
from . import refdrop_inputs as common
from .connected import checked
from .shared import number_input, reference_of, sampler_inputs, seed_input, step_inputs


class RefDropRecord(io.ComfyNode):
    """KSampler that keeps what its self-attentions saw."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="RefDropRecord",
            display_name="RefDrop Record",
            category="model/patch/reference",
            description=(
                "Samples a picture as KSampler does and keeps what the model's self-attention saw at every step. "
                "Connect cache to RefDrop Apply, and further pictures follow this one without a reference pass, "
                "whatever their prompt, seed and size."
            ),
            search_aliases=["refdrop", "RFG", "record reference", "save reference", "story"],
            inputs=[
                io.Model.Input(
                    "model", tooltip=f"Model that samples: {common.FAMILIES}. RefDrop Apply needs the same one."
                ),
                io.Conditioning.Input("positive", tooltip="Prompt of the recorded picture."),
                io.Conditioning.Input("negative", tooltip="Negative prompt of the recorded picture."),
                seed_input("Seed of the noise, as in KSampler.", advanced=False, is_drawn_anew=True),
                *step_inputs(steps=20, cfg=7.0),
                *sampler_inputs(advanced=False),
                number_input("denoise", 1.0, 1.0, "As in KSampler: how much of latent_image is repainted.", low=0.01),
                common.blocks_input(advanced=True),
                common.custom_blocks_input(),
                common.batch_references_input(
                    "How many of the first pictures of the batch (first frames of a video) are recorded as "
                    "references. Of reference_latent all are."
                ),
                *common.cache_inputs(
                    "Main memory, in MiB, for what is recorded. A run that needs more ends after its first step and "
                    "says how much.",
                    minimum=1,
                ),
                io.Latent.Input(
                    "latent_image",
                    optional=True,
                    tooltip="What is sampled, as in KSampler: an empty latent, or a picture and denoise below 1.",
                ),
                io.Latent.Input(
                    "reference_latent",
                    optional=True,
                    tooltip="In place of latent_image: a finished picture, which is noised to the level of each step "
                    "and recorded. Each latent of a batch is one more reference.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Noise levels in place of steps, scheduler and denoise, for models with a schedule of "
                    "their own.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="The picture that was sampled; reference_latent if that was given."
                ),
                common.RefDropCacheIO.Output(display_name="cache", tooltip="The recording, for RefDrop Apply."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        positive: list[Any],
        negative: list[Any],
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        blocks: str,
        custom_blocks: str,
        batch_references: int,
        cache_mib: int = common.CACHE_MIB,
        cache_precision: str = common.PRECISIONS[0],
        latent_image: dict[str, Any] | None = None,
        reference_latent: dict[str, Any] | None = None,
        sigmas: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        """Samples, and returns the picture and the recording."""
        given = None
        if reference_latent is not None and latent_image is None:
            given = Reference(reference_of(model, reference_latent, "reference_latent"), None, seed)
            latent_image = {"samples": given.samples}
            batch_references = len(given.samples)
        elif latent_image is None or reference_latent is not None:
            raise ValueError(
                "RefDrop Record needs either latent_image, to record what it samples, or reference_latent, to record a "
                f"finished picture, but {'neither is' if latent_image is None else 'both are'} connected."
            )
        available = list(attentions_of(model, "RefDrop Record").blocks)
        chosen = block_choice.select(blocks, custom_blocks, available, family(model))
        is_half = common.is_half(cache_precision)
        sampling = Sampling(seed, steps, cfg, sampler_name, scheduler, denoise, sigmas)
        budget, said = cache_mib * 2**20, _said(sampling)
        recorded = RecordedRun(model, chosen, batch_references, budget, is_half, text_on_node(), said)
        out = sampled_latent(apply_recorder(model, recorded, given), positive, negative, latent_image, sampling)
        if not recorded.levels:
            raise ValueError("RefDrop Record had no step to record. Connect sigmas of at least one step, or none.")
        return io.NodeOutput(reference_latent or out, recorded)


def _said(sampling: Sampling) -> str:
    """What a run that follows the recording must have in common with it."""
    if sampling.sigmas is not None:
        return f"{sampling.sampler_name}, {len(sampling.sigmas) - 1} steps by sigmas"
    said = f"{sampling.sampler_name}, {sampling.scheduler}, {sampling.steps} steps"
    return said if sampling.denoise == 1 else f"{said}, denoise {sampling.denoise:g}"
