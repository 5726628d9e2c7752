"""Tiny models of the host's classes that share an architecture with one of `families`, and what belongs in a prompt.

They differ in what the host makes of a prompt, which comes from nodes of their own.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from families import FAMILIES
from more_families import randn
from tiny_family import UNET, TinyFamily


def unet(
    host_class: str, in_channels: int = 4, adm: int = 0, config: dict[str, Any] | None = None, **others: Any
) -> TinyFamily:
    labels = {"num_classes": "sequential", "adm_in_channels": adm} if adm else {"num_classes": None}
    sizes = {**UNET, "in_channels": in_channels, "context_dim": 24, **labels, **(config or {})}
    return TinyFamily(host_class, sizes, (4, 8, 12), **others)


def kin(of: str, host_class: str, extra: dict[str, Any] | None = None, **config: Any) -> TinyFamily:
    """Of one frame, where frames are a dimension of their own."""
    channels, *frames, height, width = FAMILIES[of].size
    size = (channels, *[1] * len(frames), height, width)
    return replace(
        FAMILIES[of], host_class=host_class, extra=extra or {}, size=size, config={**FAMILIES[of].config, **config}
    )


def unclip(width: int) -> dict[str, Any]:
    seen = SimpleNamespace(image_embeds=randn(1, width))
    return {"unclip_conditioning": [{"clip_vision_output": seen, "strength": 1.0, "noise_augmentation": 0.1}]}


BESIDE = {"concat_latent_image": randn(1, 4, 8, 12)}
VIEW = {**BESIDE, "augmentation_level": 0.0}
ZERO123 = {"cc_projection.weight": randn(768, 28), "cc_projection.bias": randn(768)}
KIN: dict[str, TinyFamily] = {
    "lotus": unet("LotusD", adm=4),
    "unclip l": unet("SD21UnclipL", adm=1536, extra=unclip(768)),
    "unclip h": unet("SD21UnclipH", adm=2048, extra=unclip(1024)),
    "x4": unet(
        "SD_X4Upscaler",
        7,
        config={"disable_self_attentions": [True, False], "num_classes": 1000},
        extra={"concat_image": randn(1, 3, 8, 12), "noise_augmentation": 0.1},
    ),
    "instruct": unet("SD15_instructpix2pix", 8, extra=BESIDE),
    "instruct xl": unet("SDXL_instructpix2pix", 8, 1280 + 1536, pooled=1280, extra=BESIDE),
    "refiner": unet("SDXLRefiner", 4, 2560, pooled=1280, extra={"aesthetic_score": 6.0}),
    "refiner, revision": unet("SDXLRefiner", 4, 2560, pooled=1280, extra=unclip(1280)),
    "revision": unet("SDXL", 4, 2816, pooled=1280, extra=unclip(1280)),
    "zero123": unet("Stable_Zero123", 8, config={"context_dim": 768}, text=28, extra=BESIDE, weights=ZERO123),
    "sv3d u": kin("svd", "SV3D_u", VIEW, adm_in_channels=256),
    "sv3d p": kin(
        "svd", "SV3D_p", {**VIEW, "elevation": [1.0, 2.0, 3.0], "azimuth": [0.0, 9.0, 18.0]}, adm_in_channels=1280
    ),
    "flux fill": kin(
        "flux",
        "FluxInpaint",
        {"concat_latent_image": randn(1, 16, 8, 12), "concat_mask": torch.ones(1, 1, 64, 96)},
        in_channels=96,
    ),
    "schnell": kin("flux", "FluxSchnell", guidance_embed=False),
    "longcat": kin("flux", "LongCatImage", vec_in_dim=None, guidance_embed=False, txt_ids_dims=[1, 2]),
    "cosmos": kin("cosmos", "CosmosI2V", in_channels=17),
    "predict2": kin("predict2", "CosmosI2VPredict2", in_channels=17),
    "hunyuan 1.5 sr": kin(
        "hunyuan15",
        "HunyuanVideo15_SR_Distilled",
        {"concat_latent_image": randn(1, 66, 1, 4, 6), "noise_augmentation": 0.7},
        in_channels=98,
    ),
    "hunyuan": kin(
        "hunyuan",
        "HunyuanVideoI2V",
        {"concat_latent_image": randn(1, 16, 1, 8, 12), "concat_mask": torch.ones(1, 1, 1, 8, 12)},
        in_channels=33,
    ),
    "skyreels": kin(
        "hunyuan", "HunyuanVideoSkyreelsI2V", {"concat_latent_image": randn(1, 16, 1, 8, 12)}, in_channels=32
    ),
    "cogvideo": kin("cogvideo", "CogVideoX_I2V", {"concat_latent_image": randn(1, 16, 1, 8, 12)}, in_channels=32),
    "cogvideo fill": kin(
        "cogvideo", "CogVideoX_Inpaint", {"concat_latent_image": randn(1, 32, 1, 8, 12)}, in_channels=48
    ),
    "flow rvs": kin("wan21", "WAN21_FlowRVS", model_type="flow_rvs"),
    "fun control": kin(
        "wan21", "WAN21_FunControl2V", {"concat_latent_image": randn(1, 32, 1, 8, 12)}, model_type="i2v", in_dim=48
    ),
}
