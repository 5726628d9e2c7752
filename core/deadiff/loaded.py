"""DEADiff, loaded: from reference pictures to tokens, from tokens to keys and values for each cross-attention."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_management
import torch
from torch import Tensor

from ..models import checkpoint
from ..patches.blocks import Layer
from ..patches.node_text import tell
from ..patches.progress import each_of
from .checkpoint import Weights, fill, reading, require_deadiff, sizes_of
from .names import attention_layers
from .network import ImageAttentions, Readers
from .preprocess import encoder_input
from .vision import VisionTower, managed, tower_from_clip_vision, tower_from_weights
from .words import Words, words_of

if TYPE_CHECKING:
    from comfy.clip_vision import ClipVisionModel
    from comfy.model_patcher import ModelPatcher

logger = logging.getLogger(__name__)

STYLE, CONTENT = "style", "content"
MODES = [STYLE, CONTENT, "style & content"]
AVERAGE, CONCATENATE = "average", "concatenate"
COMBINE = [AVERAGE, CONCATENATE]
# Places of the transformers, in the order they run, that get the content instead of the style: the coarse ones.
CONTENT_LAYERS = frozenset({4, 5, 6, 7, 8})


@dataclass(frozen=True, eq=False)
class ImageProjections:
    """What DEADiff adds to a U-Net's cross-attentions.

    Attributes:
        patcher: manages the memory of an `ImageAttentions`.
        layers: the cross-attentions that it belongs to, in the order they run.
    """

    patcher: ModelPatcher
    layers: list[Layer]

    def project(
        self, tokens: Mapping[str, Tensor], content_layers: Collection[int], zero_tokens: bool
    ) -> dict[Layer, tuple[Tensor, Tensor]]:
        """Keys and values of tokens for the layers that get them.

        Args:
            tokens: (S, T, H) for "style", "content" or both.
            content_layers: places of the transformers that get the content.
            zero_tokens: give layers whose kind of tokens is absent as many zeros as the other kind has.

        Returns:
            (S, T, width of the layer) float32 on the CPU; without the layers that get nothing.
        """
        comfy.model_management.load_model_gpu(self.patcher)
        kinds = kinds_of(self.layers, content_layers)
        projected = {}
        with torch.no_grad():
            for layer, attention in zip(self.layers, self.patcher.model.attention, strict=True):
                own = tokens.get(kinds[layer])
                if own is None and not zero_tokens:
                    continue
                source = torch.zeros_like(next(iter(tokens.values()))) if own is None else own
                keys, values = attention(source.to(self.patcher.load_device, torch.float32))
                projected[layer] = keys.cpu(), values.cpu()
        return projected


def kinds_of(layers: Sequence[Layer], content_layers: Collection[int] = CONTENT_LAYERS) -> dict[Layer, str]:
    """Whose tokens each cross-attention gets, "style" or "content".

    Args:
        layers: in the order they run.
        content_layers: places of the transformers that get the content.
    """
    blocks = list(dict.fromkeys(block for block, _ in layers))
    return {layer: CONTENT if blocks.index(layer[0]) in content_layers else STYLE for layer in layers}


@dataclass(frozen=True, eq=False)
class DEADiff:
    """All of DEADiff that comes on top of a stock SD1.5.

    Attributes:
        readers: manages the memory of a `Readers`.
        towers: the visual encoder of each branch, usually one and the same.
        projections: the way into the U-Net.
        words: what the content branch may be instructed by besides "content"; None if the file has lost them.
    """

    readers: ModelPatcher
    towers: Mapping[str, VisionTower]
    projections: ImageProjections
    words: Words | None = None

    def tokens(
        self,
        branch: str,
        images: Tensor,
        fit: str,
        combine: str,
        ratios: Sequence[float] | None = None,
        instruction: Tensor | None = None,
    ) -> Tensor:
        """What a branch reads from pictures.

        Args:
            branch: "style" or "content".
            images: (S, height, width, channels) in [0, 1].
            fit: one of `preprocess.FITS`.
            combine: "average" of the pictures' tokens, or "concatenate".
            ratios: how much of each picture is in the average; None is equal parts.
            instruction: (N, H), of other words than the branch's own.

        Returns:
            (1, Q or S * Q, H) float32 on the CPU.
        """
        tower, reader = self.towers[branch], getattr(self.readers.model, branch)
        comfy.model_management.load_models_gpu([tower.patcher, self.readers])
        found = []
        with torch.no_grad():
            for image in each_of(images.split(1)):
                pixels = encoder_input(image, tower.image_size, fit).to(tower.patcher.load_device)
                features = tower.features(pixels).to(self.readers.load_device, torch.float32)
                found.append(reader(features, instruction).cpu())
        every = torch.cat(found)
        if combine == CONCATENATE:
            return every.flatten(0, 1).unsqueeze(0)
        if ratios is None:
            return every.mean(dim=0, keepdim=True)
        shares = torch.tensor(ratios, dtype=torch.float32)
        return torch.einsum("s,sqh->qh", shares / shares.sum(), every).unsqueeze(0)


def load(
    weights: Weights,
    clip_vision: ClipVisionModel | None = None,
    qformer_heads: int | None = None,
    vision_heads: int | None = None,
) -> DEADiff:
    """Builds DEADiff from the tensors of a checkpoint, or of a file that was extracted from it.

    Args:
        weights: under the names of the released checkpoint.
        clip_vision: visual encoder to use instead of the file's own.
        qformer_heads, vision_heads: numbers of attention heads; None: one for each 64 channels.

    Raises:
        ValueError: not a DEADiff file, or an incomplete one; or clip_vision is of another kind.
    """
    require_deadiff(weights)
    with reading("Q-Formers"):
        sizes = sizes_of(weights, qformer_heads)
        readers = Readers(sizes, device="meta", dtype=torch.float32)
    fill(readers, weights)
    towers = own_towers(weights, vision_heads)
    if clip_vision is not None:
        towers = dict.fromkeys((STYLE, CONTENT), _stock_tower(clip_vision, towers))
    if not towers:
        raise ValueError("The DEADiff file has no visual encoder. Connect OpenAI's CLIP ViT-L/14 as clip_vision.")
    for branch, tower in towers.items():
        if tower.width != sizes.vision:
            raise ValueError(
                f"The visual encoder gives tokens of width {tower.width}, but DEADiff's {branch} branch needs "
                f"{sizes.vision}. Connect CLIP ViT-L/14 as clip_vision, or leave it unconnected."
            )
    return DEADiff(managed(readers), towers, load_projections(weights), words_of(weights, CONTENT))


def load_projections(weights: Weights) -> ImageProjections:
    """The part that belongs into the U-Net.

    Raises:
        ValueError: a tensor is missing or has another shape than the others imply.
    """
    found = attention_layers(weights)
    if not found:
        raise ValueError("The DEADiff file is incomplete: it lacks the projections attn2.i_to_k. Get it again.")
    with reading("projections attn2.i_to_k"):
        shapes = (weights[f"{prefix}i_to_k.weight"].shape for _, prefix in found)
        network = ImageAttentions([(tokens, width) for width, tokens in shapes], device="meta", dtype=torch.float32)
    fill(network, weights)
    return ImageProjections(managed(network), [layer for layer, _ in found])


def own_towers(weights: Weights, heads: int | None) -> dict[str, VisionTower]:
    """The visual encoders of a file; both branches share one unless the file has two that differ."""
    found: dict[str, dict[str, Tensor]] = {}
    for branch in (STYLE, CONTENT):
        prefix = f"{branch}_blip.visual_encoder."
        found[branch] = {key.removeprefix(prefix): t for key, t in weights.items() if key.startswith(prefix)}
    if not found[STYLE]:
        return {}
    style = _tower(found[STYLE], heads)
    if not found[CONTENT] or same(found[STYLE], found[CONTENT]):
        return {STYLE: style, CONTENT: style}
    logger.warning("DEADiff: the two visual encoders of the file differ, so both are kept.")
    return {STYLE: style, CONTENT: _tower(found[CONTENT], heads)}


def _tower(weights: Weights, heads: int | None) -> VisionTower:
    with reading("visual encoder"):
        tower = tower_from_weights(weights, heads)
    checkpoint.require_floats(tower.weights(), "The visual encoder of the DEADiff file")
    return tower


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two sets of tensors have the same names and values, whatever their types."""
    return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)


def _equal(one: Tensor, other: Tensor) -> bool:
    # Both rounded to the coarser of the two types.
    kind = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return one.shape == other.shape and torch.equal(one.to("cpu", kind), other.to("cpu", kind))


def _stock_tower(clip_vision: ClipVisionModel, own: Mapping[str, VisionTower]) -> VisionTower:
    embeddings: Any = getattr(getattr(clip_vision.model, "vision_model", None), "embeddings", None)
    if getattr(embeddings, "class_embedding", None) is None:
        raise ValueError(
            f"clip_vision is a {clip_vision.model_type} without a class token. Connect CLIP ViT-L/14, or nothing."
        )
    tower = tower_from_clip_vision(clip_vision)
    warning = ""
    if own and own[STYLE].width == tower.width and not same(own[STYLE].weights(), tower.weights()):
        warning = (
            "The connected clip_vision has other weights than the visual encoder in the DEADiff file, so the "
            "style will differ from the official one. Leave clip_vision unconnected to use the file's own."
        )
    tell(warning, "clip_vision reads the pictures, in place of the encoder in the file.")
    return tower
