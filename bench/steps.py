"""A patched model's step against a plain one: time, next to the ratio of their operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from models import Run, sampler_step
from timing import alternate
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def step_row(model: Any, patched: Any, family: str, pixels: int, repeats: int, what: str) -> dict[str, Any]:
    """The row of a CFG step; its bound is the ratio of the operations."""
    plain, guided = (sampler_step(each, family, pixels) for each in (model, patched))
    return compared(plain, guided, repeats, "plain CFG step", what)


def compared(plain_run: Run, patched_run: Run, repeats: int, step: str, what: str) -> dict[str, Any]:
    """The row of a step; its bound is the ratio of the operations."""

    def measure(plain: Callable[[], Any], patched: Callable[[], Any]) -> dict[str, Any]:
        patched()  # fills what is kept from one picture to the next
        flops = [operations(each) for each in (plain, patched)]
        times = alternate(plain, patched, repeats)
        detail = {"a": step, "b": f"the same step with {what}", **times.detail()}
        return {
            "value": round(times.ratio, 4),
            "unit": f"times a {step}",
            "bound": round(flops[1] / flops[0], 4),
            "detail": {**detail, "a_TFLOP": flops[0] / 1e12, "b_TFLOP": flops[1] / 1e12, "repeats": repeats},
        }

    return plain_run(lambda plain: patched_run(lambda patched: measure(plain, patched)))


def operations(evaluate: Callable[[], Any]) -> int:
    """Floating-point operations of an evaluation as torch counts them: matrix products, convolutions, attention."""
    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_operations}
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        evaluate()
    return counter.get_total_flops()


def _attention_operations(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    # torch counts the GPU's fused attention kernels, but not the CPU's.
    return sdpa_flop_count(q, k, v)
