"""RefDrop: Controllable Consistency in Image or Video Generation via Reference Feature Guidance (arXiv 2405.17661)."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..core import blocks as block_choice
from ..core.patches.families import NAMES, attentions_of
from ..core.patches.refdrop import Guide, Reference, ReferenceCache, add_guide
from ..core.patches.unet import family
from .shared import mask_batch, range_inputs, reference_seed_input, require_latent_of

CACHE_MIB = 2048
PRECISIONS = ["model", "float16"]


class RefDropApply(io.ComfyNode):
    """Reference feature guidance in the self-attention of a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to the host."""
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
                "blend subjects",
                "diversity",
            ],
            inputs=[
                io.Model.Input("model", tooltip=f"Model to patch: {NAMES}. The connected model itself is not changed."),
                _strength_input(
                    0.3,
                    "Above 0: more like it (0.3-0.4 people, 0.2 simple subjects and video, 0.2-0.4 each when blending "
                    "several). Below 0: more different (-0.3).",
                ),
                _blocks_input(),
                *_reference_inputs(),
                *_mask_inputs(),
                _mode_input(),
                *_block_and_range_inputs(),
                io.Int.Input(
                    "batch_references",
                    default=1,
                    min=1,
                    max=64,
                    advanced=True,
                    tooltip="Without reference_latent: how many of the first pictures of the batch (first frames "
                    "of a video) are references.",
                ),
                *_economy_inputs(),
            ],
            outputs=[_output()],
        )

    @classmethod
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
        cache_mib: int = CACHE_MIB,
        cache_precision: str = PRECISIONS[0],
        reference_every: int = 1,
        share_conditional: bool = False,
        reference_latent: dict[str, Any] | None = None,
        reference_positive: list[Any] | None = None,
        mask: torch.Tensor | None = None,
        reference_mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        """Returns a patched clone of the model."""
        available = list(attentions_of(model, "RefDropApply").layers)
        guide = Guide(
            strength=strength,
            blocks=block_choice.select(blocks, custom_blocks, available, family(model)),
            reference=_reference(model, reference_latent, reference_positive, reference_seed),
            batch_references=batch_references,
            mask=mask_batch(mask),
            reference_mask=mask_batch(reference_mask),
            concat=mode == "concat",
            start_percent=start_percent,
            end_percent=end_percent,
            reference_every=reference_every,
            share_halves=share_conditional,
            cache=ReferenceCache(cache_mib * 2**20, cache_precision == PRECISIONS[1]) if cache_mib else None,
        )
        return io.NodeOutput(add_guide(model, guide))


class RefDropVideo(io.ComfyNode):
    """Reference feature guidance of all frames of a video by its first one, or by a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describes the node to the host."""
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
                    tooltip="Video model to patch: SVD, Wan, LTXV or HunyuanVideo. The connected model itself is not "
                    "changed.",
                ),
                _strength_input(0.2, "0.2 is the paper's value for videos; higher means steadier and less motion."),
                _blocks_input(),
                *_reference_inputs(),
                *_block_and_range_inputs(),
                *_economy_inputs(),
            ],
            outputs=[_output()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        strength: float,
        blocks: str,
        custom_blocks: str,
        start_percent: float,
        end_percent: float,
        reference_seed: int,
        cache_mib: int = CACHE_MIB,
        cache_precision: str = PRECISIONS[0],
        reference_every: int = 1,
        share_conditional: bool = False,
        reference_latent: dict[str, Any] | None = None,
        reference_positive: list[Any] | None = None,
    ) -> io.NodeOutput:
        """Returns a patched clone of the model."""
        if not attentions_of(model, "RefDropVideo").is_video:
            raise RuntimeError(
                f"RefDropVideo needs a video model, but this is a {family(model)} model. Use RefDropApply for pictures."
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


def _output() -> io.Output:
    return io.Model.Output(tooltip="The model with the guidance. The connected model itself is not changed.")


def _strength_input(default: float, values: str) -> io.Input:
    return io.Float.Input(
        "strength",
        default=default,
        min=-1.0,
        max=1.0,
        step=0.01,
        tooltip=f"RFG coefficient c of each reference. {values} 0 turns the effect off and gives exactly the unpatched "
        "result.",
    )


def _blocks_input() -> io.Input:
    return io.Combo.Input(
        "blocks",
        options=block_choice.CHOICES,
        default=block_choice.SKIP_FIRST_OUTPUT,
        tooltip="Which attention blocks look at the reference. Skipping the first output block, as the paper "
        "does, keeps the pose and layout of the reference out; transformers (SD3, Flux, Wan, ...) have none, so all "
        "act there.",
    )


def _reference_inputs() -> list[io.Input]:
    return [
        io.Latent.Input(
            "reference_latent",
            optional=True,
            tooltip="The reference, of any size; each latent of a batch is one more reference. Unconnected: the first "
            "pictures of the sampled batch (the first frame of a video) are the references for the rest of it.",
        ),
        io.Conditioning.Input(
            "reference_positive",
            optional=True,
            tooltip="Prompt that describes the reference. Unconnected: the sampler's own prompt.",
        ),
    ]


def _mask_inputs() -> list[io.Input]:
    return [
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where in the generated picture the reference acts. White = full effect. Unconnected = everywhere.",
        ),
        io.Mask.Input(
            "reference_mask",
            optional=True,
            tooltip="Which part of the reference is looked at, white = visible; one mask, or one for each reference. "
            "Unconnected = all of it.",
        ),
    ]


def _mode_input() -> io.Input:
    return io.Combo.Input(
        "mode",
        options=["rfg", "concat"],
        default="rfg",
        advanced=True,
        tooltip="rfg blends attention to the reference with attention to the picture itself by strength. concat "
        "attends to both in one softmax, so that the model finds the balance; strength then blends that with "
        "plain attention (1 = plain concatenation).",
    )


def _block_and_range_inputs() -> list[io.Input]:
    return [
        io.String.Input(
            "custom_blocks",
            default="",
            advanced=True,
            tooltip="Blocks to use when blocks is 'custom', for example: input.4, middle.0, output.5; double.3, "
            "single.7 in transformers (or a whole kind: output).",
        ),
        *range_inputs(),
        reference_seed_input(),
    ]


def _economy_inputs() -> list[io.Input]:
    """How often a latent reference is passed through the model, and what is kept of it."""
    return [
        io.Int.Input(
            "cache_mib",
            default=CACHE_MIB,
            min=0,
            max=1 << 20,
            optional=True,
            advanced=True,
            tooltip="Main memory, in MiB, for what the model sees in reference_latent, so that the next picture need "
            "not pass it through the model again. What does not fit is passed again; the log tells the fill. 0 "
            "keeps nothing.",
        ),
        io.Combo.Input(
            "cache_precision",
            options=PRECISIONS,
            default=PRECISIONS[0],
            optional=True,
            advanced=True,
            tooltip="model keeps it as it is, without any difference to the picture. float16 halves the memory of a "
            "model that computes in float32, with rounding errors.",
        ),
        io.Int.Input(
            "reference_every",
            default=1,
            min=1,
            max=1000,
            optional=True,
            advanced=True,
            tooltip="Pass reference_latent through the model only every so many steps and use it for those in between. "
            "1, every step, is the paper's way.",
        ),
        io.Boolean.Input(
            "share_conditional",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Let the unconditional half follow the reference's conditional pass too, which then is the only "
            "one. Halves time and memory of the reference, unlike the paper.",
        ),
    ]


def _reference(model: Any, latent: dict[str, Any] | None, positive: list[Any] | None, seed: int) -> Reference | None:
    if latent is None:
        if positive is not None:
            raise ValueError(
                "reference_positive is connected, but reference_latent is not. Connect the latent that the prompt "
                "describes, or remove the prompt: references from the batch have the sampler's own."
            )
        return None
    samples = require_latent_of(model, latent["samples"], "reference_latent")
    if positive is not None and any("hooks" in options for _, options in positive):
        raise ValueError(
            "reference_positive carries hooks (a scheduled LoRA, for example), which only the sampler's prompts can "
            "have. Connect a prompt without hooks."
        )
    return Reference(samples, positive, seed)
