"""RefDrop: Controllable Consistency in Image or Video Generation via Reference Feature Guidance (arXiv 2405.17661)."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from comfy_api.latest import io

from ..core.patches import blocks as block_choice
from ..core.patches.families.table import attentions_of
from ..core.patches.node_text import text_on_node
from ..core.patches.reference_pass import Reference
from ..core.patches.unet import family
from ..core.pictures import gate
from ..core.refdrop.cache import ReferenceCache
from ..core.refdrop.past_run import PastRun
from ..core.refdrop.settings import RefDropSettings
from ..core.refdrop.wrappers import apply_refdrop
from . import refdrop_inputs as common
from .connected import checked
from .shared import reference_of


class RefDropApply(io.ComfyNode):
    """Reference feature guidance in the self-attention of a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="RefDropApply",
            display_name="RefDrop Apply",
            category="model/patch/reference",
            description=(
                "Makes pictures follow a reference (or differ from it) without training: every self-attention also "
                "looks at the reference. Connect reference_latent, or sample a batch: then its first picture is the "
                "reference. Several references: a batch of latents, or several of these nodes in a row."
            ),
            search_aliases=[
                "refdrop",
                "RFG",
                "reference feature guidance",
                "reference only",
                "consistent character",
                "same character",
                "same person",
                "identity",
                "character sheet",
                "variations",
                "blend subjects",
                "diversity",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip=f"Model to patch: {common.FAMILIES}. The connected model itself is not changed."
                ),
                common.strength_input(
                    0.3,
                    "Above 0: more like it (0.3-0.4 people, 0.2 simple subjects and video, 0.2-0.4 each when blending "
                    "several). Below 0: more different (-0.3).",
                ),
                common.blocks_input(),
                *common.reference_inputs(),
                *common.mask_inputs(),
                common.mode_input(),
                *common.block_and_range_inputs(),
                common.batch_references_input(
                    "Without reference_latent: how many of the first pictures of the batch (first frames "
                    "of a video) are references."
                ),
                *common.economy_inputs(),
                common.RefDropCacheIO.Input(
                    "cache",
                    optional=True,
                    tooltip="In place of reference_latent: a run that RefDrop Record has recorded. No reference is "
                    "passed through the model then; sampler, scheduler, steps and denoise must be those recorded.",
                ),
            ],
            outputs=[common.output()],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        strength: float,
        blocks: str,
        mode: str,
        custom_blocks: str,
        start_percent: float,
        end_percent: float,
        reference_seed: int,
        batch_references: int,
        cache_mib: int = common.AUTOMATIC,
        cache_precision: str = common.PRECISIONS[0],
        reference_every: int = 1,
        share_conditional: bool = False,
        reference_latent: dict[str, Any] | None = None,
        reference_positive: list[Any] | None = None,
        mask: torch.Tensor | None = None,
        reference_mask: torch.Tensor | None = None,
        cache: PastRun | None = None,
    ) -> io.NodeOutput:
        """Returns a patched clone of the model."""
        if cache is not None and (reference_latent is not None or reference_positive is not None):
            raise ValueError(
                "cache is connected beside reference_latent or reference_positive, but a node has one source of "
                "references. Disconnect one of them; several RefDrop Apply nodes in a row add up."
            )
        available = list(attentions_of(model, "RefDrop Apply").blocks)
        guide = RefDropSettings(
            strength=strength,
            blocks=block_choice.select(blocks, custom_blocks, available, family(model)),
            reference=_reference(model, reference_latent, reference_positive, reference_seed),
            batch_references=batch_references,
            mask=gate.region(mask, "mask"),
            reference_mask=gate.optional_masks(reference_mask, "reference_mask"),
            concat=mode == "concat",
            start_percent=start_percent,
            end_percent=end_percent,
            reference_every=reference_every,
            share_conditional=share_conditional,
            cache=_cache(cache_mib, cache_precision),
            recorded=cache,
        )
        return io.NodeOutput(apply_refdrop(model, guide))


class RefDropVideo(io.ComfyNode):
    """Reference feature guidance of all frames of a video by its first one, or by a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to ComfyUI."""
        return io.Schema(
            node_id="RefDropVideo",
            display_name="RefDrop Video",
            category="model/patch/reference",
            description=(
                "Keeps a video consistent without training: the attention of every frame also looks at the first "
                "frame, or at the picture connected to reference_latent."
            ),
            search_aliases=["refdrop", "RFG", "consistent video", "temporal consistency", "flicker", "reference frame"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Video model to patch: nearly every family that ComfyUI runs; the help page lists them. "
                    "The connected model itself is not changed.",
                ),
                common.strength_input(
                    0.2, "0.2 is the paper's value for videos; higher means steadier and less motion."
                ),
                common.blocks_input(),
                *common.reference_inputs(),
                *common.block_and_range_inputs(),
                *common.economy_inputs(),
            ],
            outputs=[common.output()],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        strength: float,
        blocks: str,
        custom_blocks: str,
        start_percent: float,
        end_percent: float,
        reference_seed: int,
        cache_mib: int = common.AUTOMATIC,
        cache_precision: str = common.PRECISIONS[0],
        reference_every: int = 1,
        share_conditional: bool = False,
        reference_latent: dict[str, Any] | None = None,
        reference_positive: list[Any] | None = None,
    ) -> io.NodeOutput:
        """Returns a patched clone of the model."""
        if not attentions_of(model, "RefDrop Video").is_video:
            raise RuntimeError(
                f"RefDrop Video needs a video model, but this is a {family(model)} model. Use RefDrop Apply for "
                "pictures."
            )
        return RefDropApply.execute(
            model,
            strength=strength,
            blocks=blocks,
            mode="rfg",
            custom_blocks=custom_blocks,
            start_percent=start_percent,
            end_percent=end_percent,
            reference_seed=reference_seed,
            batch_references=1,
            cache_mib=cache_mib,
            cache_precision=cache_precision,
            reference_every=reference_every,
            share_conditional=share_conditional,
            reference_latent=reference_latent,
            reference_positive=reference_positive,
        )


def _cache(mib: int, precision: str) -> ReferenceCache | None:
    budget = None if mib == common.AUTOMATIC else mib * 2**20
    return ReferenceCache(budget, common.is_half(precision), text_on_node()) if mib else None


def _reference(model: Any, latent: dict[str, Any] | None, positive: list[Any] | None, seed: int) -> Reference | None:
    if latent is None:
        if positive is not None:
            raise ValueError(
                "reference_positive is connected, but reference_latent is not. Connect the latent that the prompt "
                "describes, or remove the prompt: references from the batch have the sampler's own."
            )
        return None
    samples = reference_of(model, latent, "reference_latent")
    if positive is not None:
        _check_prompt(positive)
    return Reference(samples, positive, seed)


def _check_prompt(positive: list[Any]) -> None:
    if any("hooks" in options for _, options in positive):
        raise ValueError(
            "reference_positive carries hooks (a scheduled LoRA, for example), which only the sampler's prompts can "
            "have. Connect a prompt without hooks."
        )
    times = sorted((options.get("start_percent", 0.0), options.get("end_percent", 1.0)) for _, options in positive)
    if any(end > start for (_, end), (start, _) in itertools.pairwise(times)):
        raise ValueError(
            f"reference_positive holds {len(positive)} prompts for the same steps (Conditioning Combine), but a "
            "reference is read with one at a time. Connect one, or none: then each prompt of the sampler reads it."
        )
