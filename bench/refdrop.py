"""RefDrop with a latent reference: a step's time over that of a plain step, next to the ratio of their operations.

Rows `latent` pass the reference at each step, rows `cached` take it from the cache that an earlier picture filled, rows
`batch4` pass it once for four pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from models import random_model, sampler_step
from refattention.core.blocks import ALL, CHOICES, select
from refattention.core.patches.refdrop import Guide, Reference, ReferenceCache, add_guide
from refattention.core.patches.unet import self_attention_blocks
from timing import alternate
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def rows(family: str, sizes: list[int], dtype: torch.dtype, repeats: int) -> dict[str, dict[str, Any]]:
    """One row per picture size; the reference has the size of the picture."""
    model = random_model(family, dtype)
    return {f"refdrop.latent.{family}.{pixels}": _row(model, family, pixels, repeats) for pixels in sizes}


def cached_rows(family: str, sizes: list[int], dtype: torch.dtype, repeats: int) -> dict[str, dict[str, Any]]:
    """One row per picture size, all blocks guided, and one of four pictures at the first size."""
    model = random_model(family, dtype)
    rows = {
        f"refdrop.cached.{family}.{pixels}": _row(model, family, pixels, repeats, ReferenceCache(2**33), choice=ALL)
        for pixels in sizes
    }
    return {**rows, f"refdrop.batch4.{family}.{sizes[0]}": _row(model, family, sizes[0], repeats, batch=4)}


def _row(
    model: Any,
    family: str,
    pixels: int,
    repeats: int,
    cache: ReferenceCache | None = None,
    choice: str = CHOICES[0],  # the node's default: all blocks but the first after the middle
    batch: int = 1,
) -> dict[str, Any]:
    samples = torch.randn(1, 4, pixels // 8, pixels // 8, generator=torch.Generator().manual_seed(4))
    blocks = select(choice, "", list(self_attention_blocks(model.model.diffusion_model)), family)
    patched = add_guide(model, Guide(0.3, blocks, Reference(samples, None, 0), cache=cache))
    plain_run, refdrop_run = (sampler_step(each, family, pixels, batch) for each in (model, patched))

    def measure(plain: Callable[[], Any], refdrop: Callable[[], Any]) -> dict[str, Any]:
        if cache is not None:
            refdrop()  # the earlier picture
        flops = [operations(each) for each in (plain, refdrop)]
        times = alternate(plain, refdrop, repeats)
        detail = {"a": "plain CFG step", "b": "the same step with one reference", **times.detail()}
        if cache is not None:
            detail["cache_MiB"] = cache.size / 2**20
        return {
            "value": round(times.ratio, 4),
            "unit": "times a plain CFG step",
            "bound": round(flops[1] / flops[0], 4),
            "detail": {**detail, "a_TFLOP": flops[0] / 1e12, "b_TFLOP": flops[1] / 1e12, "repeats": repeats},
        }

    return plain_run(lambda plain: refdrop_run(lambda refdrop: measure(plain, refdrop)))


def operations(evaluate: Callable[[], Any]) -> int:
    """Floating-point operations of an evaluation as torch counts them: matrix products, convolutions, attention."""
    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_operations}
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        evaluate()
    return counter.get_total_flops()


def _attention_operations(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    # torch counts the GPU's fused attention kernels, but not the CPU's.
    return sdpa_flop_count(q, k, v)
