"""What DEADiff's training starts from: new Q-Formers behind the world's own vision encoder, in DEADiff's form."""

from __future__ import annotations

from pathlib import Path

import torch
from refattention_demo.deadiff_layout import DEADiffSize, random_weights
from refattention_demo.families import SD15
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import export
from .vision import FULL_WIDTH, LAYERS, WIDTH, VisionEncoder

QUERIES, QFORMER_LAYERS = 8, 2
HIDDEN = SD15.unet.context_dim
SIZE = DEADiffSize(
    SD15.unet, hidden=HIDDEN, layers=QFORMER_LAYERS, feed_forward=2 * HIDDEN, vision=WIDTH, vision_layers=LAYERS,
    queries=QUERIES, vocabulary=4200,
)  # fmt: skip
# The norms of the encoder were made for 1024 features of which only the first are not zero.
NARROWER = (FULL_WIDTH / WIDTH) ** 0.5
# Image tokens begin as the text's do, but quietly.
LOUDNESS = 0.3


def write(path: Path, base: Path) -> None:
    """Writes the file, unless it is there."""
    if path.exists():
        return
    weights, tower, text = random_weights(SIZE), visual_encoder(), load_file(base)
    for name in weights:
        if ".visual_encoder." in name:
            weights[name] = tower[name.split(".visual_encoder.")[1]]
        elif name.endswith(("i_to_k.weight", "i_to_v.weight")):
            weights[name] = text[name.replace("i_to_", "to_")] * (LOUDNESS if "i_to_v" in name else 1.0)
        elif "embeddings" in name or "query_tokens" in name:
            weights[name] = weights[name] * 0.3
    save_file({name: tensor.float().clone() for name, tensor in weights.items()}, path)


def visual_encoder() -> dict[str, Tensor]:
    """The vision encoder under the names of OpenAI's CLIP, its norms for its own width.

    A norm over all features subtracts a smaller mean than one over the narrow encoder's, so the features are near those
    of the wide form, not the same.
    """
    trained = export.vision()
    stored = {name: trained[export.in_host(name)].float() for name in VisionEncoder().state_dict()}
    found = {
        "class_embedding": stored["class_embedding"],
        "positional_embedding": stored["position_embedding"],
        "conv1.weight": stored["patch_embedding.weight"],
        **_norm("ln_pre", stored, "pre_layrnorm"),
    }
    for number in range(LAYERS):
        new, old = f"transformer.resblocks.{number}", f"layers.{number}"
        for kind in ("weight", "bias"):
            parts = [stored[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{new}.attn.in_proj_{kind}"] = torch.cat(parts)
            found[f"{new}.attn.out_proj.{kind}"] = stored[f"{old}.self_attn.out_proj.{kind}"]
            found[f"{new}.mlp.c_fc.{kind}"] = stored[f"{old}.mlp.fc1.{kind}"]
            found[f"{new}.mlp.c_proj.{kind}"] = stored[f"{old}.mlp.fc2.{kind}"]
        for norm in ("1", "2"):
            found |= _norm(f"{new}.ln_{norm}", stored, f"{old}.layer_norm{norm}")
    return found


def _norm(name: str, stored: dict[str, Tensor], old: str) -> dict[str, Tensor]:
    return {f"{name}.weight": stored[f"{old}.weight"] * NARROWER, f"{name}.bias": stored[f"{old}.bias"]}
