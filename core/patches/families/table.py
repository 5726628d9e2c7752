"""The table of families."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy.ldm.chroma.model import Chroma
from comfy.ldm.flux.model import Flux
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.ldm.lightricks.model import LTXVModel
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from comfy.ldm.wan.model import WanModel
from torch import nn

from ..unet import family
from .attentions import Attentions
from .transformer import Layout, TransformerAttentions
from .unet import UNetAttentions

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_TWO_KINDS = {"double": "double_blocks", "single": "single_blocks"}
# By the exact class: what derives from one of them may add tokens or attentions of its own.
TRANSFORMERS: dict[type[nn.Module], Layout] = {
    Flux: Layout(_TWO_KINDS),  # Flux 1 and 2, and what is built like them
    Chroma: Layout(_TWO_KINDS),
    OpenAISignatureMMDITWrapper: Layout(  # SD3, SD3.5; some blocks of 3.5 Medium attend to the image a second time
        {"double": "joint_blocks"},
        names_blocks=False,
        attentions=lambda block: 2 if block.x_block.x_block_self_attn else 1,
    ),
    QwenImageTransformer2DModel: Layout({"double": "transformer_blocks"}),
    NextDiT: Layout(  # Lumina 2, Z-Image
        {"double": "layers"}, padding=lambda module, tokens: -tokens % (module.pad_tokens_multiple or 1)
    ),
    WanModel: Layout({"double": "blocks"}, is_video=True, patch=lambda module: module.patch_size[-2:]),
    LTXVModel: Layout({"double": "transformer_blocks"}, is_video=True, names_blocks=False, patch=lambda module: (1, 1)),
    HunyuanVideo: Layout(_TWO_KINDS, is_video=True, patch=lambda module: module.patch_size[-2:]),
}
NAMES = "SD1.5, SD2, SDXL, SD3, Flux, Chroma, Qwen-Image, Lumina 2, Z-Image, SVD, Wan, LTXV or HunyuanVideo"


def attentions_of(model: ModelPatcher, node: str) -> Attentions:
    """The self-attentions of a model.

    Raises:
        RuntimeError: its family is not in the table; names the family.
    """
    module = getattr(model.model, "diffusion_model", None)
    if isinstance(module, UNetModel):
        return UNetAttentions(module)
    layout = TRANSFORMERS.get(type(module)) if isinstance(module, nn.Module) else None
    if module is None or layout is None:
        raise RuntimeError(f"{node} cannot patch the attention of a {family(model)} model. Connect {NAMES}.")
    return TransformerAttentions(module, layout)
