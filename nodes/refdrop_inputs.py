"""Inputs and outputs that the nodes of RefDrop have in common."""

from __future__ import annotations

from comfy_api.latest import io

from ..core.patches import blocks as block_choice
from .shared import range_inputs, reference_seed_input

RefDropCacheIO = io.Custom("REFDROP_CACHE")
CACHE_MIB = 2048
AUTOMATIC = -1  # as `cache_mib`: by the memory that is free
PRECISIONS = ["model", "float16"]
FAMILIES = "nearly every picture and video family that ComfyUI runs; the help page lists them"


def is_half(precision: str) -> bool:
    """What `cache_precision` asks for."""
    return precision == PRECISIONS[1]


def output() -> io.Output:
    """The guided model."""
    return io.Model.Output(tooltip="The model with the guidance. The connected model itself is not changed.")


def strength_input(default: float, values: str) -> io.Input:
    """`strength`; `values` is the advice in its tooltip."""
    return io.Float.Input(
        "strength",
        default=default,
        min=-1.0,
        max=1.0,
        step=0.01,
        tooltip=f"RFG coefficient c of each reference. {values} 0 turns the effect off and gives exactly the unpatched "
        "result.",
    )


def blocks_input(advanced: bool = False) -> io.Input:
    """`blocks`."""
    return io.Combo.Input(
        "blocks",
        options=block_choice.CHOICES,
        default=block_choice.SKIP_FIRST_OUTPUT,
        advanced=advanced,
        tooltip="Which attention blocks look at the reference. Skipping the first output block, as the paper "
        "does, keeps the pose and layout of the reference out; transformers (SD3, Flux, Wan, ...) have none, so all "
        "act there.",
    )


def reference_inputs() -> list[io.Input]:
    """`reference_latent`, `reference_positive`."""
    return [
        io.Latent.Input(
            "reference_latent",
            optional=True,
            tooltip="The reference: a picture of any size through VAE Encode, with the model's VAE. Each latent of a "
            "batch is one more reference. Unconnected: the first pictures of the sampled batch (the first frame of a "
            "video) are the references for the rest of it.",
        ),
        io.Conditioning.Input(
            "reference_positive",
            optional=True,
            tooltip="Prompt that describes the reference. Unconnected: the sampler's own prompt; the reference is then "
            "read anew whenever that changes, which takes longer.",
        ),
    ]


def mask_inputs() -> list[io.Input]:
    """`mask`, `reference_mask`."""
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


def mode_input() -> io.Input:
    """`mode`."""
    return io.Combo.Input(
        "mode",
        options=["rfg", "concat"],
        default="rfg",
        advanced=True,
        tooltip="rfg blends attention to the reference with attention to the picture itself by strength. concat "
        "attends to both in one softmax, so that the model finds the balance; strength then blends that with "
        "plain attention (1 = plain concatenation).",
    )


def custom_blocks_input() -> io.Input:
    """`custom_blocks`."""
    return io.String.Input(
        "custom_blocks",
        default="",
        advanced=True,
        tooltip="Blocks to use when blocks is 'custom', for example: input.4, middle.0, output.5; double.3, "
        "single.7 in transformers (or a whole kind: output).",
    )


def block_and_range_inputs() -> list[io.Input]:
    """`custom_blocks`, the part of the schedule, `reference_seed`."""
    return [
        custom_blocks_input(),
        *range_inputs(),
        reference_seed_input(),
    ]


def batch_references_input(tooltip: str) -> io.Input:
    """`batch_references`."""
    return io.Int.Input("batch_references", default=1, min=1, max=64, advanced=True, tooltip=tooltip)


def economy_inputs() -> list[io.Input]:
    """How often a latent reference is passed through the model, and what is kept of it."""
    return [
        *cache_inputs(
            "Main memory, in MiB, for what the model sees in reference_latent, so that the next picture need not pass "
            "it through the model again. What does not fit is passed again; the node says how much is kept. -1: up to "
            "a third of what is free. 0: nothing.",
            minimum=AUTOMATIC,
            default=AUTOMATIC,
        ),
        io.Int.Input(
            "reference_every",
            default=1,
            min=1,
            max=1000,
            optional=True,
            advanced=True,
            tooltip="Pass reference_latent through the model only every so many steps and use it for those in between. "
            "The paper passes it at every step, 1.",
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


def cache_inputs(memory: str, minimum: int, default: int = CACHE_MIB) -> list[io.Input]:
    """`cache_mib`, which `memory` explains, and `cache_precision`."""
    return [
        io.Int.Input(
            "cache_mib",
            default=default,
            min=minimum,
            max=1 << 20,
            optional=True,
            advanced=True,
            tooltip=memory,
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
    ]
