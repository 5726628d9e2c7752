"""The table of families, and why a model may not be in it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ..unet import family
from .attentions import Attentions
from .transformer import Grid, Inputs, Layout, Named, TransformerAttentions, token_size
from .unet import UNetAttentions

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_TWO_KINDS = {"double": "double_blocks", "single": "single_blocks"}
_ONE_KIND = {"double": "blocks"}
_PIXELS = {"double": "patch_blocks", "single": "pixel_blocks"}
_FRAME = frozenset({"reference_latents"})  # enters as one more frame


def _each_cell(module: Any) -> Grid:
    """A token is a latent cell; some models say `patch_size` of what their VAE has put together already."""
    return 1, 1, 1


def _cosmos(module: Any) -> Grid:
    return module.patch_temporal, module.patch_spatial, module.patch_spatial


def _padding(module: Any, grid: Grid, inputs: Inputs) -> int:
    """Z-Image fills the picture's tokens up to a multiple of 32."""
    return -math.prod(grid) % (module.pad_tokens_multiple or 1)


def _refiners(module: Any, inputs: Inputs) -> int:
    """OmniGen2 refines the text's, the picture's and the reference pictures' tokens alone first."""
    alone = [module.context_refiner, module.noise_refiner]
    if inputs.get("ref_latents") is not None:
        alone.append(module.ref_image_refiner)
    return sum(map(len, alone))


def _reference_patches(module: Any, grid: Grid, inputs: Inputs) -> int:
    """HiDream O1 puts the tokens of reference pictures behind the picture's."""
    patches = inputs.get("ref_patches")
    return 0 if patches is None else patches.shape[1]


def _poses(module: Any, grid: Grid, inputs: Inputs) -> int:
    """SCAIL puts the tokens of a video of poses behind the video's."""
    poses = inputs.get("pose_latents")
    if poses is None:
        return 0
    return math.prod(-(-n // p) for n, p in zip(poses.shape[2:], token_size(module), strict=True))


def _wan(name: str, more_refused: tuple[str, ...] = (), **more: Any) -> Layout:
    """Wan and what is built on it; ComfyUI puts the tokens of some inputs behind the video's."""
    refused = ("time_dim_concat", "context_latents", *more_refused)
    return Layout(name, _ONE_KIND, is_video=True, refused=refused, **more)


# By the exact class in comfy.ldm: what derives from one of them may add tokens or attentions of its own.
LAYOUTS: dict[str, Layout] = {
    "flux.model.Flux": Layout("Flux 1, Flux 2, LongCat-Image", _TWO_KINDS, references=True),
    "chroma.model.Chroma": Layout("Chroma", _TWO_KINDS),
    "chroma_radiance.model.ChromaRadiance": Layout("Chroma Radiance", _TWO_KINDS),
    "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper": Layout(
        "SD3, SD3.5",
        {"double": "joint_blocks"},
        named=Named.BY_US,
        attentions=lambda block: 2 if block.x_block.x_block_self_attn else 1,  # SD3.5 Medium: once more without text
    ),
    "aura.mmdit.MMDiT": Layout("AuraFlow", {"double": "double_layers", "single": "single_layers"}, named=Named.BY_US),
    "qwen_image.model.QwenImageTransformer2DModel": Layout(
        "Qwen-Image", {"double": "transformer_blocks"}, references=True
    ),
    "mage_flow.model.MageFlowTransformer2DModel": Layout(
        "Mage-Flow", {"double": "transformer_blocks"}, references=True
    ),
    "lens.model.LensTransformer2DModel": Layout(
        "Lens", {"double": "transformer_blocks"}, patch=_each_cell, image_first=True
    ),
    "joyimage.model.JoyImageTransformer3DModel": Layout("JoyImage", {"double": "double_blocks"}, image_first=True),
    "lumina.model.NextDiT": Layout("Lumina 2, Z-Image", {"double": "layers"}, after=_padding),
    "lumina.model.NextDiTPixelSpace": Layout("Z-Image in pixel space", {"double": "layers"}, after=_padding),
    "hidream.model.HiDreamImageTransformer2DModel": Layout(
        "HiDream I1",
        {"double": "double_stream_blocks", "single": "single_stream_blocks"},
        named=Named.BY_ORDER,
        image_first=True,
        refused=("image_cond",),  # HiDream E1: put beside the picture, row by row
    ),
    "hidream_o1.model.HiDreamO1Transformer": Layout(
        "HiDream O1", {"double": "language_model.layers"}, after=_reference_patches, keys_only=True
    ),
    "omnigen.omnigen2.OmniGen2Transformer2DModel": Layout(
        "OmniGen2", {"single": "layers"}, named=Named.BY_ORDER, before=_refiners
    ),
    "boogu.model.BooguTransformer2DModel": Layout(
        "Boogu",
        {"double": "double_stream_layers", "single": "single_stream_layers"},
        named=Named.BY_ORDER,
        before=_refiners,
        attentions=lambda block: 2 if hasattr(block, "img_self_attn") else 1,  # once more without text
    ),
    "ideogram4.model.Ideogram4Transformer2DModel": Layout(
        "Ideogram 4", {"single": "layers"}, named=Named.BY_ORDER, patch=_each_cell
    ),
    "krea2.model.SingleStreamDiT": Layout(
        "Krea 2", {"single": "blocks"}, patch=lambda module: (1, module.patch, module.patch), references=True
    ),
    "pixeldit.model.PixDiT_T2I": Layout("PixelDiT", _PIXELS, named=Named.BY_ORDER),
    "pixeldit.pid.PidNet": Layout(
        "PiD", _PIXELS, named=Named.BY_ORDER, unreadable="it enlarges the picture in its prompt, which is another's"
    ),
    "cascade.stage_c.StageC": Layout(
        "Stable Cascade",
        {"input": "down_blocks", "output": "up_blocks"},
        named=Named.BY_ORDER,
        patch=_each_cell,
        image_first=True,
        keys_only=True,
        unpaintable="stage B makes the picture of what it paints",
    ),
    "cosmos.predict2.MiniTrainDIT": Layout("Cosmos Predict2", _ONE_KIND, is_video=True, patch=_cosmos),
    "anima.model.Anima": Layout("Anima", _ONE_KIND, patch=_cosmos),
    "cosmos.model.GeneralDIT": Layout(
        "Cosmos 1", _ONE_KIND, is_video=True, named=Named.BY_ORDER, patch=_cosmos, others=1
    ),
    "kandinsky5.model.Kandinsky5": Layout("Kandinsky 5", {"double": "visual_transformer_blocks"}, is_video=True),
    "hunyuan_video.model.HunyuanVideo": Layout("HunyuanVideo, HunyuanVideo 1.5", _TWO_KINDS, is_video=True),
    "lightricks.model.LTXVModel": Layout(
        "LTXV", {"double": "transformer_blocks"}, is_video=True, named=Named.BY_US, patch=_each_cell
    ),
    "lightricks.av_model.LTXAVModel": Layout(
        "LTX-2", {"double": "transformer_blocks"}, is_video=True, named=Named.BY_US, patch=_each_cell
    ),
    "genmo.joint_model.asymm_models_joint.AsymmDiTJoint": Layout(
        "Mochi", _ONE_KIND, is_video=True, named=Named.BY_US, image_first=True
    ),
    "cogvideo.model.CogVideoXTransformer3DModel": Layout(
        "CogVideoX",
        _ONE_KIND,
        is_video=True,
        named=Named.BY_ORDER,
        patch=lambda module: (module.patch_size_t or 1, module.patch_size, module.patch_size),
    ),
    "wan.model.WanModel": _wan("Wan 2.1, Wan 2.2, Wan Fun", of_picture=_FRAME),
    "wan.ar_model.CausalWanModel": _wan("Wan, autoregressive", of_picture=_FRAME, more_refused=("ar_state",)),
    "wan.model.VaceWanModel": _wan("Wan VACE"),
    "wan.model.CameraWanModel": _wan("Wan Fun Camera"),
    "wan.model.HumoWanModel": _wan("HuMo", image_first=True),
    "wan.model.WanModel_S2V": _wan("Wan S2V", image_first=True),
    "wan.model_animate.AnimateWanModel": _wan("Wan Animate", of_picture=_FRAME),
    "wan.model.SCAILWanModel": _wan("SCAIL", after=_poses, of_picture=_FRAME),
    "wan.model.SCAIL2WanModel": _wan("SCAIL 2", after=_poses, of_picture=_FRAME),
    "wan.model_wandancer.WanDancerModel": _wan("WanDancer", of_picture=_FRAME),
}

# Why others are not, by their class in comfy.ldm.
_UNSEEN = "its attention is computed where ComfyUI's hooks do not see it"
_NO_PICTURE = "it makes no pictures"
REASONS: dict[str, str] = {
    "hydit.models.HunYuanDiT": _UNSEEN,
    "pixart.pixartms.PixArtMS": _UNSEEN,
    "ernie.model.ErnieImageModel": _UNSEEN,
    "seedvr.model.NaDiT": _UNSEEN,
    "cascade.stage_b.StageB": "it paints what stage C decided, at several sizes, and its attentions do not say which",
    "minimax.model.MiniMaxH3Model": "it paints sound and video as one latent, and a picture has no sound",
    "audio.dit.AudioDiffusionTransformer": _NO_PICTURE,
    "ace.model.ACEStepTransformer2DModel": _NO_PICTURE,
    "ace.ace_step15.AceStepConditionGenerationModel": _NO_PICTURE,
    "hunyuan3d.model.Hunyuan3Dv2": _NO_PICTURE,
    "hunyuan3dv2_1.hunyuandit.HunYuanDiTPlain": _NO_PICTURE,
    "triposplat.model.LatentSeqMMFlowModel": _NO_PICTURE,
    "rt_detr.rtdetr_v4.RTv4": _NO_PICTURE,
    "sam3.detector.SAM3Model": _NO_PICTURE,
    "depth_anything_3.model.DepthAnything3Net": _NO_PICTURE,
}


def key_of(architecture: type) -> str:
    """The key of a diffusion model's class in the tables."""
    return f"{architecture.__module__}.{architecture.__qualname__}".removeprefix("comfy.ldm.")


def layout_of(module: object) -> Layout | None:
    """The line of the table for a diffusion model; None for a U-Net, and for what is not in the table."""
    return LAYOUTS.get(key_of(type(module)))


def attentions_of(model: ModelPatcher, node: str) -> Attentions:
    """The self-attentions of a model.

    Raises:
        RuntimeError: its family is not in the table; names the family, and why.
    """
    module: Any = getattr(model.model, "diffusion_model", None)
    if isinstance(module, UNetModel):
        return UNetAttentions(module)
    layout = layout_of(module)
    if layout is not None:
        # HunyuanImage and Kandinsky's picture model have the classes of video models.
        return TransformerAttentions(module, layout, model.model.latent_format.latent_dimensions == 3, node)
    why = REASONS.get(key_of(type(module)), "it is of a kind that this node does not know")
    raise RuntimeError(
        f"{node} cannot patch the attention of a {family(model)} model: {why}. Connect a model of a family that the "
        "node's help page lists."
    )


def readable_attentions(model: ModelPatcher, node: str) -> Attentions:
    """The self-attentions of a model, for methods that read a reference with the prompt of what is painted.

    Raises:
        RuntimeError: its family is not in the table, or cannot be read so; names the family, and why.
    """
    layout = layout_of(getattr(model.model, "diffusion_model", None))
    if layout is not None and layout.unreadable:
        raise RuntimeError(
            f"{node} cannot read a reference with the prompt of a {family(model)} model: {layout.unreadable}. Connect "
            "a model that the node's help page lists."
        )
    return attentions_of(model, node)


def picture_attentions(model: ModelPatcher, node: str) -> Attentions:
    """The same of a model of pictures.

    Raises:
        RuntimeError: also for a model of videos.
    """
    attentions = readable_attentions(model, node)
    if attentions.is_video:
        raise RuntimeError(f"{node} works on pictures, but {family(model)} makes videos. Connect a model of pictures.")
    return attentions


def require_paintable(model: ModelPatcher, node: str) -> None:
    """Checks that what a model paints can be put into a picture.

    Raises:
        RuntimeError: it cannot; names the family, and why.
    """
    layout = layout_of(getattr(model.model, "diffusion_model", None))
    if layout is not None and layout.unpaintable:
        raise RuntimeError(
            f"{node} cannot repair a picture with a {family(model)} model: {layout.unpaintable}. Connect a model that "
            "the node's help page lists."
        )
