"""RefDrop on transformers at their real widths, with a few blocks: time over that of a plain step, per operation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from families import FAMILIES, TinyFamily, random_model, random_prompt
from models import FLUX, WAN_SMALL, evaluation
from refattention.core.patches.families.table import attentions_of
from refattention.core.patches.reference_pass import Reference
from refattention.core.refdrop.cache import ReferenceCache
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from steps import compared

BOUND = 1.15
# family -> as the released model, but for the number of blocks; the size of the latent
WIDE: dict[str, TinyFamily] = {
    "flux": replace(  # 512 x 512 pixels, 1024 image tokens
        FAMILIES["flux"],
        config={**FLUX, "depth": 2, "depth_single_blocks": 2},
        size=(16, 64, 64),
        pooled=768,
        text=4096,
    ),
    "wan": replace(  # 256 x 256 pixels, 5 frames of 256 tokens
        FAMILIES["wan21"], config={**WAN_SMALL, "num_layers": 2}, size=(16, 5, 32, 32), text=4096
    ),
}


def rows(repeats: int, wide: dict[str, TinyFamily] = WIDE) -> dict[str, dict[str, Any]]:
    """For each family a step with a cached reference, and one that passes it."""
    found = {}
    for name, family in wide.items():
        model = random_model(family)
        for what, cache in (("cached", ReferenceCache(2**33)), ("passed", None)):
            found[f"refdrop.{name}.block.{what}"] = _row(model, family, repeats, what, cache)
    return found


def _row(model: Any, family: TinyFamily, repeats: int, what: str, cache: ReferenceCache | None) -> dict[str, Any]:
    noise, samples = (torch.randn(1, *family.size, generator=torch.Generator().manual_seed(seed)) for seed in (1, 4))
    if family.frames > 1:
        samples = samples[:, :, :1]  # a picture is the reference of a video
    guide = RefDropSettings(
        0.3, frozenset(attentions_of(model, "bench").blocks), Reference(samples, None, 0), cache=cache
    )
    prompts = [random_prompt(family, seed, 256) for seed in (2, 3)]
    plain, guided = (
        evaluation(each, noise, *prompts, cfg=family.cfg, level=0.7) for each in (model, apply_refdrop(model, guide))
    )
    row = compared(plain, guided, repeats, "plain step", f"one {what} reference")
    detail = {**row["detail"], "time": row["value"], "operations": row["bound"]}
    return {
        "value": round(row["value"] / row["bound"], 4),
        "unit": "times the ratio of the operations",
        "bound": BOUND,
        "detail": detail,
    }
