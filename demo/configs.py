"""How the host recognises and builds the demo models: its own families, told apart by their small widths."""

from __future__ import annotations

from typing import Any

import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
from comfy.supported_models_base import ClipTarget

from .families import SD15, SDXL, TextEncoderSize


class DemoSD15ClipModel(comfy.sd1_clip.SD1ClipModel):
    """The host's SD1.5 text encoder at the demo width."""

    def __init__(self, model_options: dict[str, Any], **kwargs: Any) -> None:
        widths = _with_width(model_options, "clip_l", SD15.text_encoders[0])
        super().__init__(model_options=widths, **kwargs)


class DemoSDXLClipModel(comfy.sdxl_clip.SDXLClipModel):
    """The host's pair of SDXL text encoders at the demo width."""

    def __init__(self, model_options: dict[str, Any], **kwargs: Any) -> None:
        clip_l, clip_g = SDXL.text_encoders
        widths = _with_width(_with_width(model_options, "clip_l", clip_l), "clip_g", clip_g)
        super().__init__(model_options=widths, **kwargs)


class DemoSD15(comfy.supported_models.SD15):
    """SD1.5 at the demo width."""

    unet_config = {
        **comfy.supported_models.SD15.unet_config,
        "context_dim": SD15.unet.context_dim,
        "model_channels": SD15.unet.model_channels,
    }
    unet_extra_config = {"num_heads": SD15.unet.num_heads, "num_head_channels": SD15.unet.num_head_channels}

    def clip_target(self, state_dict: dict[str, Any] | None = None) -> ClipTarget:
        """The host's tokenizer with the small text encoder."""
        return ClipTarget(comfy.sd1_clip.SD1Tokenizer, DemoSD15ClipModel)


class DemoSDXL(comfy.supported_models.SDXL):
    """SDXL at the demo width."""

    unet_config = {
        **comfy.supported_models.SDXL.unet_config,
        "context_dim": SDXL.unet.context_dim,
        "model_channels": SDXL.unet.model_channels,
        "adm_in_channels": SDXL.unet.adm_in_channels,
    }
    unet_extra_config = {"num_heads": SDXL.unet.num_heads, "num_head_channels": SDXL.unet.num_head_channels}

    def clip_target(self, state_dict: dict[str, Any] | None = None) -> ClipTarget:
        """The host's tokenizers with the small text encoders."""
        return ClipTarget(comfy.sdxl_clip.SDXLTokenizer, DemoSDXLClipModel)


CONFIGS = (DemoSD15, DemoSDXL)


def register() -> None:
    """Adds the demo models to the families that the host knows. Doing so more than once is harmless."""
    known = comfy.supported_models.models
    known.extend(config for config in CONFIGS if config not in known)


def _with_width(model_options: dict[str, Any], name: str, size: TextEncoderSize) -> dict[str, Any]:
    width = {
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_attention_heads": size.heads,
        "projection_dim": size.hidden,
    }
    return {**model_options, f"{name}_model_config": width}
