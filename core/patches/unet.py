"""A model's family, and where the self-attentions of a U-Net are."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from comfy.ldm.modules.attention import BasicTransformerBlock, SpatialTransformer, SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import ModelType
from comfy.supported_models import SD15, SD20

from .blocks import Block, Layer

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


def family(model: ModelPatcher) -> str:
    """ComfyUI's name of a model's family, for example "SDXL" or "Flux"."""
    config = getattr(model.model, "model_config", None)
    return type(config or model.model).__name__


def trained_size(model: ModelPatcher) -> int:
    """Side in pixels of a model's pictures in training: 512 (SD1.5), 768 (SD2's larger model), or 1024 (all others)."""
    config = model.model.model_config
    if isinstance(config, SD20) and model.model.model_type is ModelType.V_PREDICTION:
        return 768
    return 512 if isinstance(config, SD15 | SD20) else 1024


def require_image_unet(model: ModelPatcher, node: str) -> UNetModel:
    """Returns the U-Net of an image model.

    Raises:
        RuntimeError: another architecture, or a video U-Net; names the family.
    """
    unet = getattr(model.model, "diffusion_model", None)
    if not isinstance(unet, UNetModel) or any(isinstance(m, SpatialVideoTransformer) for m in unet.modules()):
        raise RuntimeError(
            f"{node} cannot patch the attention of a {family(model)} model. "
            "Connect a model with an image U-Net: SD1.5, SD2 or SDXL."
        )
    return unet


def self_attention_blocks(unet: UNetModel) -> dict[Block, int]:
    """The blocks that hold self-attention, in the order they run, each with its number of transformer layers."""
    return dict(Counter(block for block, _ in self_attention_layers(unet)))


def self_attention_layers(unet: UNetModel) -> dict[Layer, BasicTransformerBlock]:
    """The transformer layers with self-attention by block and number inside it, in the order they run."""
    sides = {"input": unet.input_blocks, "middle": [unet.middle_block or ()], "output": unet.output_blocks}
    return {
        ((side, number), depth): layer
        for side, blocks in sides.items()
        for number, block in enumerate(blocks)
        for transformer in block
        if _has_self_attention(transformer)
        for depth, layer in enumerate(transformer.transformer_blocks)
    }


def _has_self_attention(layer: object) -> bool:
    # Some upscalers turn attn1 into a second cross-attention in part of their blocks.
    return isinstance(layer, SpatialTransformer) and not layer.transformer_blocks[0].disable_self_attn
