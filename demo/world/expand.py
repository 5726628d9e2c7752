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

from .. import codec
from ..families import SD15
from ..leffa import CHANNELS, to_diffusers
from ..vision import zeros as vision_zeros

Tensors = dict[str, Tensor]


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
    tensors = codec.zeros()
    _write(tensors, {f"taesd_{name}": tensor for name, tensor in compact.items() if "." in name})
    # The encoder's last layer brings its latents to mean 0, and each channel to about the same size.
    mean, deviation = compact["mean"], compact["deviation"]
    tensors["taesd_encoder.14.weight"] = tensors["taesd_encoder.14.weight"] / deviation[:, None, None, None]
    tensors["taesd_encoder.14.bias"] = (tensors["taesd_encoder.14.bias"] - mean) / deviation
    tensors["vae_scale"] = SD15.latent_scale / compact["scale"].float()
    tensors["vae_shift"] = torch.tensor(0.0)
    return tensors


def vision(compact: Tensors) -> Tensors:
    """All tensors of the vision encoder in the layout of CLIP ViT-L/14, which is the smallest that the host knows.

    Args:
        compact: a narrow encoder of a few layers, under the names of the real one.
    """
    tensors = vision_zeros()
    _write(tensors, compact)
    return tensors


def leffa(compact: Tensors, base: Tensors) -> Tensors:
    """All tensors of a try-on checkpoint in Leffa's form, with the base's autoencoder.

    Args:
        compact: what was trained of both U-Nets, under the names of the released file; the base has the rest.
        base: the compact base model.
    """
    unet = {name.removeprefix("unet."): tensor for name, tensor in base.items() if name.startswith("unet.")}
    tensors = {prefix + to_diffusers(name): tensor for prefix in CHANNELS for name, tensor in unet.items()}
    vae = {name.removeprefix("vae."): tensor for name, tensor in base.items() if name.startswith("vae.")}
    tensors |= {f"vae.{name}": tensor for name, tensor in _autoencoder(vae).items()}
    return tensors | unpacked(compact)


def packed(tensors: Tensors) -> Tensors:
    """Matrices in 8 bits with a scale for each row, `NAME.scale`; the rest as it is."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2:
            found[name] = tensor
            continue
        rows = tensor.float().flatten(1)
        scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-8) / 127
        found[name] = (rows / scale).round().to(torch.int8).view(tensor.shape)
        found[f"{name}.scale"] = scale[:, 0]
    return found


def unpacked(tensors: Tensors) -> Tensors:
    """The inverse of `packed`, but for rounding."""
    return {
        name: tensor * tensors[f"{name}.scale"].view(-1, *[1] * (tensor.ndim - 1))
        if tensor.dtype == torch.int8
        else tensor
        for name, tensor in tensors.items()
        if not name.endswith(".scale")
    }


def _write(wide: Tensors, narrow: Tensors) -> None:
    """Writes narrow tensors into the beginnings of wide ones of the same names."""
    for name, tensor in narrow.items():
        wide[name][tuple(slice(0, size) for size in tensor.shape)] = tensor
