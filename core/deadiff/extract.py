"""The part of a DEADiff checkpoint that a stock SD1.5 does not have, as a file of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..models.checkpoint import save
from .checkpoint import Weights, instruction
from .loaded import CONTENT, STYLE, load
from .names import attention_layers, official

ABOUT = "DEADiff without the Stable Diffusion in it, for ComfyUI-RefAttention. The weights are for research use."
VISION = "style_blip.visual_encoder."
EMBEDDINGS = re.compile(r"content_blip\.Qformer\.bert\.embeddings\.(word|position)_embeddings\.weight")


def extract(weights: Weights, visual_encoder: bool, half: bool, all_words: bool = False) -> dict[str, Tensor]:
    """Selects what the pack needs, under the names of the checkpoint.

    Args:
        weights: of a DEADiff checkpoint.
        visual_encoder: keep the visual encoder; without it the file needs a stock CLIP ViT-L/14 beside it.
        half: store matrices in float16; else everything keeps its type.
        all_words: keep the embeddings of words that the content branch may be instructed by.

    Raises:
        ValueError: not a DEADiff file, or an incomplete one.
    """
    loaded = load(weights)  # checks everything
    prefixes = [prefix for _, prefix in attention_layers(weights)]
    kept: dict[str, Tensor] = {}
    for network in (loaded.readers.model, loaded.projections.patcher.model):
        for name in network.state_dict():
            branch = name.split(".")[0]
            key = official(name, prefixes)
            kept[key] = instruction(weights, branch) if name.endswith(".instruction") else weights[key]
    if visual_encoder:
        shared = loaded.towers[STYLE] is loaded.towers[CONTENT]
        encoders = [VISION] if shared else [VISION, VISION.replace("style", "content")]
        kept |= {key: tensor for key, tensor in weights.items() if key.startswith(tuple(encoders))}
    if all_words:
        kept |= {key: tensor for key, tensor in weights.items() if EMBEDDINGS.fullmatch(key)}
    return {key: _stored(tensor, half) for key, tensor in kept.items()}


def write_file(weights: Mapping[str, Tensor], path: str) -> None:
    """Writes a safetensors file that says what it is."""
    save(weights, path, {"about": ABOUT})


def _stored(tensor: Tensor, half: bool) -> Tensor:
    stored = (tensor.to(torch.float16) if half and tensor.ndim > 1 else tensor).contiguous()
    # safetensors cannot store views into a larger tensor.
    return stored if stored.untyped_storage().nbytes() == stored.nbytes else stored.clone()
