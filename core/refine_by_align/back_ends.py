"""How a model is shown references, in both stages: its self-attention, trained cross-attention, or in its sequence."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from comfy.ldm.flux.model import Flux
from torch import Tensor
from torch.nn import functional as F

from ..patches.attention import Options
from ..patches.blocks import SKIP_FIRST_OUTPUT, select
from ..patches.families.table import picture_attentions, require_paintable
from ..patches.passes import OURS
from ..patches.reference_pass import Reference
from ..patches.single_evaluation import other_seed
from ..patches.unet import family, require_image_unet
from ..refdrop.settings import RefDropSettings
from ..refdrop.wrappers import apply_refdrop
from .adapter import TrainedAdapter, for_model
from .in_context import (
    METHOD,
    in_context_maps,
    is_editing,
    method_for,
    require_references,
    takes_references,
    weakened,
    with_references,
)
from .kernel import group_of_mask
from .observe import Look, Maps, attention_maps, of_whole_picture
from .reader import PatchReader
from .tokens import token_maps

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

Encode = Callable[[Tensor], Tensor]
Prompt = list[Any]  # in ComfyUI's form
Guided = tuple["ModelPatcher", Prompt, Prompt]  # what is sampled with: model, positive and negative
# A picture (1, H, W, 3) -> its tokens (1, h * w, C), and their grid (h, w).
Read = Callable[[Tensor], tuple[Tensor, tuple[int, int]]]

# Entries of a prompt that are for a place in the picture, and what brings them
AT_PLACES = {"area": "an area", "mask": "a mask", "control": "a ControlNet", "gligen": "GLIGEN"}
AUTO, SELF, IN_CONTEXT = "auto", "self-attention", "in-context"
CHOICES = [AUTO, SELF, IN_CONTEXT]


@dataclass(frozen=True, eq=False)
class Scene:
    """What the model works on.

    Attributes:
        picture: (1, H, W, 3), the window around an artifact.
        region: (h, w) of any size, 0 and 1, where the artifact is in it.
        mask: (1, 1, h, w), the latents that are painted.
    """

    picture: Tensor
    region: Tensor
    mask: Tensor


class BackEnd(Protocol):
    """How a model is shown references."""

    def maps(self, scene: Scene, references: Sequence[Tensor], mask: Tensor | None, look: Look) -> Maps:
        """What the artifact's queries see in the first reference, as of `attention_maps`, with the others in view.

        Args:
            references: (1, H', W', 3) each, at least one.
            mask: where in the first one is looked; None is everywhere.
        """

    def guided(self, scene: Scene, crops: Sequence[Tensor], negative: Prompt, strength: float, seed: int) -> Guided:
        """What paints a scene with crops of the references, (1, h, w, 3) each, in view."""


@dataclass(frozen=True, eq=False)
class SelfAttention:
    """Any checkpoint: keys come from a pass of the reference through the model, and RefDrop guides.

    Attributes:
        model: of pictures.
        encode: (1, H, W, 3) in [0, 1] -> (1, C, h, w).
        positive: the prompt.
        node: for messages.
    """

    model: ModelPatcher
    encode: Encode
    positive: Prompt
    node: str

    def maps(self, scene: Scene, references: Sequence[Tensor], mask: Tensor | None, look: Look) -> Maps:
        """Two passes for each timestep; other references make no difference."""
        samples, other = self.encode(scene.picture), self.encode(references[0])
        return attention_maps(self.model, self.positive, samples, other, look, _queries(scene), self.node, mask)

    def guided(self, scene: Scene, crops: Sequence[Tensor], negative: Prompt, strength: float, seed: int) -> Guided:
        """RefDrop's guidance by the crops, inside the mask; strength is its c, which they share."""
        guided, seed = self.model, other_seed(seed)
        blocks = list(picture_attentions(self.model, self.node).blocks)
        chosen = select(SKIP_FIRST_OUTPUT, "", blocks, family(self.model))
        for each in crops:
            reference = Reference(self.encode(each), None, seed)
            settings = RefDropSettings(strength / len(crops), chosen, reference, mask=scene.mask[0])
            guided, seed = apply_refdrop(guided, settings), other_seed(seed)
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

    def maps(self, scene: Scene, references: Sequence[Tensor], mask: Tensor | None, look: Look) -> Maps:
        """One pass for each timestep; other references make no difference."""
        tokens, grid = self.read(references[0])
        conditioning = [[tokens, {**of_whole_picture(self.positive), **inpainted(self.model, self.encode, scene)}]]
        samples, queries = self.encode(scene.picture), _queries(scene)
        return token_maps(self.model, conditioning, grid, samples, look, queries, self.node, mask)

    def guided(self, scene: Scene, crops: Sequence[Tensor], negative: Prompt, strength: float, seed: int) -> Guided:
        """Tokens of the crops as context, of zeros without guidance.

        Note:
            Strength blends the two in every layer: it multiplies the values, and 1 is as trained.
        """
        tokens = torch.cat([self.read(each)[0] for each in crops], dim=1)
        inpainting = inpainted(self.model, self.encode, scene)

        def with_context(context: Tensor, prompt: Prompt) -> Prompt:
            return [[context, {**options, **inpainting}] for _, options in prompt]

        def weighted(n: Tensor, context: Tensor, value: Tensor, options: Options) -> tuple[Tensor, ...]:
            return n, context, value * strength

        model = self.model.clone()
        model.set_model_attn2_patch(weighted)
        return model, with_context(tokens, self.positive), with_context(torch.zeros_like(tokens), negative)


@dataclass(frozen=True, eq=False)
class InContext:
    """An editing model: references are in its sequence, as it was trained.

    Attributes:
        model: Flux Kontext, Flux 2, Qwen-Image-Edit, or another whose references ComfyUI counts.
        encode, positive, node: as for `SelfAttention`; reference latents that the prompts bring stay in view.
    """

    model: ModelPatcher
    encode: Encode
    positive: Prompt
    node: str

    def maps(self, scene: Scene, references: Sequence[Tensor], mask: Tensor | None, look: Look) -> Maps:
        """One pass for each timestep, with the other references in view.

        The maps are scaled together, to a mean of 1 where the reference is searched: layers that look at it more count
        more.
        """
        latents = [self.encode(each) for each in references]
        masks = [mask, *(None for _ in references[1:])]
        samples, queries = self.encode(scene.picture), _queries(scene)
        found = in_context_maps(self.model, self.positive, samples, latents, look, queries, self.node, masks)
        return _evened(found[0])

    def guided(self, scene: Scene, crops: Sequence[Tensor], negative: Prompt, strength: float, seed: int) -> Guided:
        """The crops as reference latents of both prompts; strength 1 is as trained, 0 leaves them out."""
        require_references(self.model, self.node)
        latents = [self.encode(each) for each in crops] if strength else []
        method = self.positive[0][1].get(METHOD, method_for(self.model))
        positive, negative = (with_references(prompt, latents, method) for prompt in (self.positive, negative))
        is_whole = strength in (0, 1)
        return self.model if is_whole else weakened(self.model, strength, len(latents)), positive, negative


def _evened(maps: Maps) -> Maps:
    """Maps with one factor for all of them, so that the mean of what is not 0 becomes 1."""
    seen = torch.cat([each.flatten() for each in maps.values()])
    mean = seen[seen > 0].mean() if seen.any() else 1.0
    return {place: each / mean for place, each in maps.items()}


def placed(model: ModelPatcher, prompts: Sequence[Prompt]) -> str:
    """Names what model and prompts carry that is made for the whole picture, by its places; "" for nothing."""
    entries = {
        key for prompt in prompts for _, options in prompt for key, value in options.items() if value is not None
    }
    if found := [f"{name} of a prompt" for key, name in AT_PLACES.items() if key in entries]:
        return found[0]
    if "concat_latent_image" in entries and not _takes_mask(model):
        return "the picture that a prompt brings for the model's inputs"
    options = model.model_options["transformer_options"]
    ours = [some for key, some in options.items() if str(key).startswith(OURS) and isinstance(some, tuple)]
    if any(getattr(each, "mask", None) is not None for some in ours for each in some):
        return "the mask of a node of this pack on the model"
    patches = [each for some in options.get("patches", {}).values() for each in some]
    return "a ControlNet on the model" if any(hasattr(each, "models") for each in patches) else ""


def inpainted(model: ModelPatcher, encode: Encode, scene: Scene) -> dict[str, Tensor]:
    """What a model with inputs for mask and masked picture is given, in ComfyUI's form; nothing for any other."""
    if not _takes_mask(model):
        return {}
    return {"concat_mask": scene.mask, "concat_latent_image": encode(blanked(scene.picture, scene.mask))}


def _takes_mask(model: ModelPatcher) -> bool:
    return bool(model.model.concat_keys) or _is_flux_fill(model)


def _is_flux_fill(model: ModelPatcher) -> bool:
    """Whether a model is a Flux with more inputs than a latent and a picture beside it: the mask's."""
    config = model.model.model_config.unet_config
    return type(model.model.diffusion_model) is Flux and config["in_channels"] > 2 * config["out_channels"]


def back_end(
    model: ModelPatcher,
    encode: Encode,
    positive: Prompt,
    node: str,
    adapter: TrainedAdapter | None,
    clip_vision: Any,
    choice: str = AUTO,
) -> BackEnd:
    """The back end that is connected or chosen: the trained one with an adapter and its vision encoder.

    Raises:
        RuntimeError: a model that the back end cannot work with, or an adapter for another model.
        ValueError: only one of adapter and clip_vision, or two that do not belong together, or another back end was
            chosen.
    """
    require_paintable(model, node)
    if adapter is None and clip_vision is None:
        if is_in_context(model, positive, node, choice):
            return InContext(model, encode, positive, node)
        picture_attentions(model, node)
        return SelfAttention(model, encode, positive, node)
    if adapter is None or clip_vision is None:
        there, missing = ("adapter", "clip_vision") if clip_vision is None else ("clip_vision", "adapter")
        raise ValueError(f"{there} is connected, but {missing} is not. Connect both of them, or neither.")
    if choice != AUTO:
        raise ValueError(f"back_end is {choice}, but an adapter is connected, which has its own. Set back_end to auto.")
    require_image_unet(model, node)
    trained, network = for_model(adapter, model, family(model))
    return CrossAttention(trained, PatchReader(clip_vision, network, adapter.origin), encode, positive, node)


def is_in_context(model: ModelPatcher, positive: Prompt, node: str, choice: str) -> bool:
    """Whether references go into the sequence of an editing model.

    Raises:
        RuntimeError: they shall, but the model takes none.
    """
    if choice == IN_CONTEXT:
        require_references(model, node)
    if choice == AUTO and takes_references(model) and not is_editing(model, positive):
        logging.getLogger(__name__).info(
            "%s: nothing tells that this %s model is an editing model, so it looks by self-attention. If it is one "
            "(Flux Kontext, Qwen-Image-Edit), set back_end to in-context.",
            node,
            family(model),
        )
    return choice == IN_CONTEXT or (choice == AUTO and is_editing(model, positive))


def blanked(picture: Tensor, mask: Tensor) -> Tensor:
    """A picture (1, H, W, 3) in grey where the latents of a mask (1, 1, h, w) are 1."""
    hidden = F.interpolate(mask, picture.shape[1:3], mode="nearest").movedim(1, -1)
    return torch.where(hidden > 0, 0.5, picture)


def _queries(scene: Scene) -> Callable[[tuple[int, int]], Tensor]:
    return lambda grid: group_of_mask(scene.region, grid)
