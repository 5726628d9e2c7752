"""What one DEADiffStyle node asks for, and whether a model can follow it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import comfy.supported_models
from torch import Tensor

from ..patches.attention import Options
from ..patches.blocks import Layer, name_of
from ..patches.schedule import check_range
from ..patches.unet import family, require_image_unet, self_attention_layers

if TYPE_CHECKING:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.model_patcher import ModelPatcher

NODE = "DEADiff Style"


@dataclass(frozen=True, eq=False)
class DEADiffSettings:
    """Image keys and values for each cross-attention, and how they act. Immutable: clones of a model share it.

    Attributes:
        image: (1 or B, T, C) keys and values of the conditional half. A layer that is absent attends to text alone.
        strength: w, the factor on the image's keys and values.
        zero_tokens: give the unconditional half T zero tokens, as the official code does, instead of none.
        mask: (1 or B, H, W), region of the generated picture; None is everywhere.
        start_percent, end_percent: part of the sampling schedule, both ends included.
    """

    image: Mapping[Layer, tuple[Tensor, Tensor]]
    strength: float = 1.0
    zero_tokens: bool = True
    mask: Tensor | None = None
    start_percent: float = 0.0
    end_percent: float = 1.0

    @property
    def is_off(self) -> bool:
        """Whether the style can have no effect. Strength 0 is an effect where zero tokens take part in the softmax."""
        return (self.strength == 0 and not self.zero_tokens) or (self.mask is not None and not self.mask.any())

    @property
    def whole_schedule(self) -> bool:
        """Whether it acts at every step."""
        return self.start_percent == 0 and self.end_percent == 1


def check_settings(settings: DEADiffSettings) -> None:
    """Checks what does not need the model.

    Raises:
        ValueError: strength is not a number, or the percentages are the wrong way round.
    """
    if not math.isfinite(settings.strength) or settings.strength < 0:
        raise ValueError(f"strength must be a number of at least 0, but is {settings.strength}.")
    check_range(settings.start_percent, settings.end_percent)


def require_sd15(model: ModelPatcher) -> UNetModel:
    """Returns the U-Net of an SD1.5 model.

    Raises:
        RuntimeError: the model is of another family; names it.
    """
    if not isinstance(getattr(model.model, "model_config", None), comfy.supported_models.SD15):
        raise RuntimeError(
            f"{NODE} needs an SD1.5 model, because DEADiff's weights fit no other, but got {family(model)}. "
            "Connect a checkpoint of the SD1.5 family."
        )
    return require_image_unet(model, NODE)


def check_layers(unet: UNetModel, image: Mapping[Layer, tuple[Tensor, Tensor]]) -> None:
    """Checks that the image keys fit the model's cross-attentions.

    Raises:
        RuntimeError: a layer does not exist in the model, or has another width.
    """
    widths = cross_attention_widths(unet)
    for layer, (keys, _) in image.items():
        if widths.get(layer) != keys.shape[-1]:
            found = f"is {widths[layer]} wide" if layer in widths else "does not exist"
            raise RuntimeError(
                f"{NODE}: the DEADiff file has weights for a cross-attention of width {keys.shape[-1]} in block "
                f"{name_of(layer[0])}, but there the model's {found}. Connect the SD1.5 model that the file belongs to."
            )


def cross_attention_widths(unet: UNetModel) -> dict[Layer, int]:
    """The layers that attend to text, in the order they run, each with the width of its keys."""
    return {place: layer.attn2.heads * layer.attn2.dim_head for place, layer in self_attention_layers(unet).items()}


def check_no_replacement(options: Options, image: Mapping[Layer, tuple[Tensor, Tensor]]) -> None:
    """Checks that no other node replaces the cross-attentions that the style needs.

    Raises:
        RuntimeError: another node replaces one of them; names the block.
    """
    blocks = {block for block, _ in image}
    for place in options.get("patches_replace", {}).get("attn2", {}):
        if tuple(place[:2]) in blocks:
            raise RuntimeError(
                f"{NODE}: another node of this model (an IP-Adapter?) replaces the cross-attention of block "
                f"{name_of(tuple(place[:2]))}, and only one of the two can compute it. Remove that node or this one."
            )
