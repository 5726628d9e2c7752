"""How a model is shown the reference, in both stages: by its own self-attention, or by trained cross-attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..patches.attention import Options
from ..patches.blocks import SKIP_FIRST_OUTPUT, select
from ..patches.reference_pass import Reference
from ..patches.single_evaluation import other_seed
from ..patches.unet import family, require_image_unet, self_attention_blocks
from ..pictures.grid import CELL
from ..refdrop.settings import RefDropSettings
from ..refdrop.wrappers import apply_refdrop
from .adapter import TrainedAdapter, for_model
from .kernel import group_of_mask
from .observe import Look, Maps, attention_maps, of_whole_picture
from .reader import PatchReader
from .tokens import token_maps

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

Encode = Callable[[Tensor], Tensor]
Prompt = list[Any]  # in ComfyUI's form
# A picture (1, H, W, 3) -> its tokens (1, h * w, C), and their grid (h, w).
Read = Callable[[Tensor], tuple[Tensor, tuple[int, int]]]


@dataclass(frozen=True, eq=False)
class Scene:
    """What the model works on.

    Attributes:
        picture: (1, H, W, 3), the window around an artifact.
        region: (h, w) of any size, 0 and 1, where the artifact is in it.
        mask: (1, 1, H / 8, W / 8), the latents that are painted.
    """

    picture: Tensor
    region: Tensor
    mask: Tensor


class BackEnd(Protocol):
    """How a model is shown the reference."""

    def maps(self, scene: Scene, reference: Tensor, reference_mask: Tensor | None, look: Look) -> Maps:
        """What the artifact's queries see in a reference (1, H', W', 3), as `attention_maps` tells it."""

    def guided(
        self, scene: Scene, crop: Tensor, negative: Prompt, strength: float, seed: int
    ) -> tuple[ModelPatcher, Prompt, Prompt]:
        """Model, positive and negative prompt that paint a scene with a crop of the reference (1, h, w, 3) in view."""


@dataclass(frozen=True, eq=False)
class SelfAttention:
    """Any checkpoint: keys come from a pass of the reference through the model, and RefDrop guides.

    Attributes:
        model: SD1.5, SD2 or SDXL.
        encode: (1, H, W, 3) in [0, 1] -> (1, C, H / 8, W / 8).
        positive: the prompt.
        node: for messages.
    """

    model: ModelPatcher
    encode: Encode
    positive: Prompt
    node: str

    def maps(self, scene: Scene, reference: Tensor, reference_mask: Tensor | None, look: Look) -> Maps:
        """Two passes for each timestep."""
        samples, other = self.encode(scene.picture), self.encode(reference)
        queries = _queries(scene)
        return attention_maps(self.model, self.positive, samples, other, look, queries, self.node, reference_mask)

    def guided(
        self, scene: Scene, crop: Tensor, negative: Prompt, strength: float, seed: int
    ) -> tuple[ModelPatcher, Prompt, Prompt]:
        """RefDrop's guidance by the crop, inside the mask; strength is its c."""
        reference = Reference(self.encode(crop), None, other_seed(seed))
        blocks = list(self_attention_blocks(require_image_unet(self.model, self.node)))
        chosen = select(SKIP_FIRST_OUTPUT, "", blocks, family(self.model))
        guided = apply_refdrop(self.model, RefDropSettings(strength, chosen, reference, mask=scene.mask[0]))
        inpainting = inpainted(self.model, self.encode, scene)

        def hiding(prompt: Prompt) -> Prompt:
            return [[text, {**options, **inpainting}] for text, options in prompt]

        return guided, hiding(self.positive), hiding(negative)


@dataclass(frozen=True, eq=False)
class CrossAttention:
    """A model whose context is the patches of the reference, as the paper trains it; it reads no text.

    Attributes:
        model: with the cross-attentions that were trained.
        read: the tokens of a picture.
        encode, positive, node: as for `SelfAttention`; of the prompts everything but the text is used.
    """

    model: ModelPatcher
    read: Read
    encode: Encode
    positive: Prompt
    node: str

    def maps(self, scene: Scene, reference: Tensor, reference_mask: Tensor | None, look: Look) -> Maps:
        """One pass for each timestep."""
        tokens, grid = self.read(reference)
        conditioning = [[tokens, {**of_whole_picture(self.positive), **inpainted(self.model, self.encode, scene)}]]
        samples, queries = self.encode(scene.picture), _queries(scene)
        return token_maps(self.model, conditioning, grid, samples, look, queries, self.node, reference_mask)

    def guided(
        self, scene: Scene, crop: Tensor, negative: Prompt, strength: float, seed: int
    ) -> tuple[ModelPatcher, Prompt, Prompt]:
        """Tokens of the crop as context, of zeros without guidance.

        Note:
            Strength blends the two in every layer: it multiplies the values, and 1 is as trained.
        """
        tokens, _ = self.read(crop)
        inpainting = inpainted(self.model, self.encode, scene)

        def with_context(context: Tensor, prompt: Prompt) -> Prompt:
            return [[context, {**options, **inpainting}] for _, options in prompt]

        def weighted(n: Tensor, context: Tensor, value: Tensor, options: Options) -> tuple[Tensor, ...]:
            return n, context, value * strength

        model = self.model.clone()
        model.set_model_attn2_patch(weighted)
        return model, with_context(tokens, self.positive), with_context(torch.zeros_like(tokens), negative)


def inpainted(model: ModelPatcher, encode: Encode, scene: Scene) -> dict[str, Tensor]:
    """What a U-Net with inputs for mask and masked picture is given, in ComfyUI's form; nothing for any other."""
    if not model.model.concat_keys:
        return {}
    return {"concat_mask": scene.mask, "concat_latent_image": encode(blanked(scene.picture, scene.mask))}


def back_end(
    model: ModelPatcher, encode: Encode, positive: Prompt, node: str, adapter: TrainedAdapter | None, clip_vision: Any
) -> BackEnd:
    """The back end that is connected: the trained one with an adapter and its vision encoder.

    Raises:
        RuntimeError: not an image U-Net, or an adapter for another model.
        ValueError: only one of adapter and clip_vision, or two that do not belong together.
    """
    require_image_unet(model, node)
    if adapter is None and clip_vision is None:
        return SelfAttention(model, encode, positive, node)
    if adapter is None or clip_vision is None:
        there, missing = ("adapter", "clip_vision") if clip_vision is None else ("clip_vision", "adapter")
        raise ValueError(f"{there} is connected, but {missing} is not. Connect both of them, or neither.")
    trained, network = for_model(adapter, model, family(model))
    return CrossAttention(trained, PatchReader(clip_vision, network, adapter.origin), encode, positive, node)


def blanked(picture: Tensor, mask: Tensor) -> Tensor:
    """A picture (1, H, W, 3) in grey where the latents of a mask (1, 1, H / 8, W / 8) are 1."""
    hidden = F.interpolate(mask, scale_factor=CELL, mode="nearest").movedim(1, -1)
    return torch.where(hidden > 0, 0.5, picture)


def _queries(scene: Scene) -> Callable[[tuple[int, int]], Tensor]:
    return lambda grid: group_of_mask(scene.region, grid)
