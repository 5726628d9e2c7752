"""Compact weights to a checkpoint that the host's stock loader reads.

The compact file holds what training changed. The rest of the real layout follows: features that the narrow autoencoder
does not have are zeros, text layers that it does not have are identities, and words that no caption has are zeros.

| Compact | In the checkpoint |
|---|---|
| `unet.*` | `model.diffusion_model.*` |
| `text.*`, `text.rows` with the tokenizer's number of each row | `cond_stage_model.transformer.text_model.*` |
| `vae.*`, `vae.scale` for latents of standard deviation 1 | `first_stage_model.*` |
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..families import SD15

Tensors = dict[str, Tensor]
WIDTH = 64
ENCODER_BLOCKS = (1, 3, 4, 5, 7, 8, 9, 11, 12, 13)
DECODER_BLOCKS = (3, 4, 5, 8, 9, 10, 13, 14, 15, 18)


def checkpoint(compact: Tensors) -> Tensors:
    """All tensors of the checkpoint under the names of SD1.5's file."""
    parts: dict[str, Tensors] = {"unet": {}, "text": {}, "vae": {}}
    for name, tensor in compact.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor.float() if tensor.is_floating_point() else tensor
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in parts["unet"].items()}
    tensors |= {
        f"{SD15.text_encoders[0].prefix}text_model.{name}": tensor for name, tensor in _text(parts["text"]).items()
    }
    return tensors | {f"first_stage_model.{name}": tensor for name, tensor in _autoencoder(parts["vae"]).items()}


def _text(compact: Tensors) -> Tensors:
    size = SD15.text_encoders[0]
    words = torch.zeros(size.vocabulary, size.hidden)
    words[compact["rows"].long()] = compact["token_embedding.weight"]
    tensors = {
        "embeddings.token_embedding.weight": words,
        "embeddings.position_embedding.weight": compact["position_embedding.weight"],
        "embeddings.position_ids": torch.arange(size.positions)[None],
    }
    for name, tensor in compact.items():
        if name.startswith("final_layer_norm"):
            tensors[name] = tensor
        if name.startswith("layers.0."):
            kind = name.removeprefix("layers.0.")
            for layer in range(size.layers):
                is_slope = "norm" in kind and kind.endswith("weight")
                identity = torch.ones_like(tensor) if is_slope else torch.zeros_like(tensor)
                tensors[f"encoder.layers.{layer}.{kind}"] = compact.get(f"layers.{layer}.{kind}", identity)
    return tensors


def _autoencoder(compact: Tensors) -> Tensors:
    tensors = {f"taesd_{name}": _padded(name, tensor) for name, tensor in compact.items() if "." in name}
    for network, blocks in (("taesd_encoder", ENCODER_BLOCKS), ("taesd_decoder", DECODER_BLOCKS)):
        for block in blocks:
            for layer in (0, 2, 4):
                tensors.setdefault(f"{network}.{block}.conv.{layer}.weight", torch.zeros(WIDTH, WIDTH, 3, 3))
                tensors.setdefault(f"{network}.{block}.conv.{layer}.bias", torch.zeros(WIDTH))
    # The encoder's last layer brings its latents to mean 0, and each channel to about the same size.
    mean, deviation = compact["mean"], compact["deviation"]
    tensors["taesd_encoder.14.weight"] = tensors["taesd_encoder.14.weight"] / deviation[:, None, None, None]
    tensors["taesd_encoder.14.bias"] = (tensors["taesd_encoder.14.bias"] - mean) / deviation
    tensors["vae_scale"] = SD15.latent_scale / compact["scale"].float()
    tensors["vae_shift"] = torch.tensor(0.0)
    return tensors


def _padded(name: str, tensor: Tensor) -> Tensor:
    """Zeros up to the full width, except on the side of pictures or latents."""
    begins = name.startswith(("encoder.0.", "decoder.1."))
    ends = name.startswith(("encoder.14.", "decoder.19."))
    shape = [tensor.shape[0] if ends else WIDTH]
    if tensor.ndim == 4:
        shape += [tensor.shape[1] if begins else WIDTH, *tensor.shape[2:]]
    wide = torch.zeros(shape)
    wide[tuple(slice(0, size) for size in tensor.shape)] = tensor
    return wide


def vision(compact: Tensors) -> Tensors:
    """All tensors of the vision encoder in the layout of CLIP ViT-L/14, which is the smallest that the host knows.

    Args:
        compact: a narrow encoder of a few layers, under the names of the real one.
    """
    tensors = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in _vision_shapes().items()}
    for name, tensor in compact.items():
        tensors[name][tuple(slice(0, size) for size in tensor.shape)] = tensor.half()
    return tensors


def _vision_shapes() -> dict[str, tuple[int, ...]]:
    width, inner = 1024, 4096
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (257, width),
        "visual_projection.weight": (768, width),
    }
    norms = [f"vision_model.{name}." for name in ("pre_layrnorm", "post_layernorm")]
    for layer in range(24):
        prefix = f"vision_model.encoder.layers.{layer}."
        norms += [f"{prefix}layer_norm1.", f"{prefix}layer_norm2."]
        for name in ("q", "k", "v", "out"):
            shapes |= {
                f"{prefix}self_attn.{name}_proj.weight": (width, width),
                f"{prefix}self_attn.{name}_proj.bias": (width,),
            }
        shapes |= {f"{prefix}mlp.fc1.weight": (inner, width), f"{prefix}mlp.fc1.bias": (inner,)}
        shapes |= {f"{prefix}mlp.fc2.weight": (width, inner), f"{prefix}mlp.fc2.bias": (width,)}
    return shapes | {f"{name}{kind}": (width,) for name in norms for kind in ("weight", "bias")}
