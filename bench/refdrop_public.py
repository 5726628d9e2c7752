"""RefDrop's cached step and its cache against a public node's, on the same full-size weights in the same process.

The public node is run, never copied: put it where `PUBLIC` says,

    git clone https://github.com/tocantrell/sd-refdrop-comfyui out/public_refdrop

It replaces methods of the host's classes for good, so they are put back after each of its steps; and it moves what it
kept to "cuda" by name, so its entries are wrapped in something that stays where it is.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, CrossAttention
from models import random_model, sampler_step
from refattention.core.patches.unet import self_attention_blocks
from refattention.core.refdrop.recorded_run import RecordedRun
from refattention.core.refdrop.recorder import apply_recorder
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from timing import alternate
from torch import Tensor

PUBLIC = Path(__file__).resolve().parent.parent / "out" / "public_refdrop"
STRENGTH = 0.3


def rows(sizes: list[int], repeats: int) -> dict[str, dict[str, Any]]:
    """A row for the step and one for the memory at each size; none without the public node (see above)."""
    if not PUBLIC.is_dir():
        print(f"refdrop_public: no {PUBLIC}, so there is nothing to compare with; see bench/refdrop_public.py")
        return {}
    model, public = random_model("sd15", torch.float32), PublicNode()
    return {name: row for pixels in sizes for name, row in _rows(model, public, pixels, repeats).items()}


def _rows(model: Any, public: PublicNode, pixels: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Both record the same step, whose noise is another than that of the step they guide."""
    blocks = frozenset(self_attention_blocks(model.model.diffusion_model))
    recordings = [RecordedRun(model, blocks, 1, 2**33, is_half) for is_half in (False, True)]
    for recorded in recordings:
        sampler_step(apply_recorder(model, recorded), "sd15", pixels, seed=4)(lambda evaluate: evaluate())
    sampler_step(model, "sd15", pixels, seed=4)(public.save)
    whole, half = (
        sampler_step(apply_refdrop(model, RefDropSettings(STRENGTH, blocks, recorded=recorded)), "sd15", pixels)
        for recorded in recordings
    )

    def measure(theirs: Callable[[], Tensor], ours: Callable[[], Tensor]) -> tuple[dict[str, Any], Tensor, Tensor]:
        want, got = theirs(), ours()
        times = alternate(theirs, ours, repeats)
        detail = {"a": "the public node's Use", "b": "a recorded reference", **times.detail(), "repeats": repeats}
        return {"value": round(times.ratio, 4), "detail": detail}, want, got

    plain = sampler_step(model, "sd15", pixels)
    step, want, got = plain(lambda evaluate: whole(lambda ours: measure(lambda: public.use(evaluate), ours)))
    rounded = half(lambda evaluate: evaluate())
    ratio = round(recordings[1].size / public.size, 4)
    memory = {
        "public_MiB": public.size / 2**20,
        "ours_MiB": {"float32": recordings[0].size / 2**20, "float16": recordings[1].size / 2**20},
        "what": "one step with CFG, all blocks; the value is of float16",
        "largest difference to the public prediction": {
            "float32": (got - want).abs().max().item(),
            "float16": (rounded - want).abs().max().item(),
        },
    }
    unit = "times the public node's"
    return {
        f"refdrop.public.step.{pixels}": {**step, "unit": f"{unit} step", "bound": 1.0},
        f"refdrop.public.cache.{pixels}": {"value": ratio, "unit": f"{unit} memory", "bound": 0.5, "detail": memory},
    }


class PublicNode:
    """The public node's Save and Use around one evaluation."""

    def __init__(self) -> None:
        with _restored():
            spec = importlib.util.spec_from_file_location("public_refdrop", PUBLIC / "refdrop.py")
            assert spec is not None and spec.loader is not None
            self._module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(self._module)
        self.size = 0

    def save(self, evaluate: Callable[[], Tensor]) -> None:
        """Keeps what an evaluation sees."""
        with _restored():
            self._module.RefDropSave().save_refdrop("TRUE", 0, "TRUE", None)
            evaluate()
        kept = (CrossAttention.k_dict, CrossAttention.v_dict)
        self.size = sum(tensor.nbytes for tensors in kept for tensor in tensors.values())
        CrossAttention.k_dict, CrossAttention.v_dict = (
            {name: _Here(tensor) for name, tensor in tensors.items()} for tensors in kept
        )

    def use(self, evaluate: Callable[[], Tensor]) -> Tensor:
        """An evaluation guided by what was kept.

        Raises:
            RuntimeError: it went on without, as it does when something fails.
        """
        with _restored():
            self._module.RefDropUse().use_refdrop("TRUE", STRENGTH, None)
            out = evaluate()
        if CrossAttention.refdrop != "Use":
            raise RuntimeError("The public node did not find what it had kept.")
        return out


class _Here:
    """A tensor that stays where it is."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def to(self, device: str) -> Tensor:
        return self._tensor


@contextmanager
def _restored() -> Iterator[None]:
    """Puts the host's methods back at the end."""
    kept = CrossAttention.forward, BasicTransformerBlock.forward
    try:
        yield
    finally:
        CrossAttention.forward, BasicTransformerBlock.forward = kept
