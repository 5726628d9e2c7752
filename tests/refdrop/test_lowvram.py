"""The host's --lowvram and --novram: weights that stay where they are and are cast, and patched, at each use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management as management
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from families import FAMILIES, tiny_latent, tiny_model, tiny_prompt
from refattention.core.patches.families.table import attentions_of
from refattention.core.patches.reference_pass import Reference
from refattention.core.refdrop.cache import ReferenceCache
from refattention.core.refdrop.recorded_run import RecordedRun
from refattention.core.refdrop.recorder import apply_recorder
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from sampling import distance, sample
from torch import Tensor

MIB = 2**20


@contextmanager
def scarce_memory(state: str) -> Iterator[None]:
    """The host as on a graphics card that holds a part of the model, or nothing of it; it ignores this on a CPU."""
    management.unload_all_models()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(management, "vram_state", management.VRAMState[state])
        patch.setattr(management, "is_device_cpu", lambda device: False)
        patch.setattr(management, "get_free_memory", lambda device=None, torch_free_too=False: 64 * 1024)
        patch.setattr(management, "minimum_inference_memory", lambda: 0)
        yield
        management.unload_all_models()


def lora(patcher: Any) -> Any:
    """A weight patch on the keys and values of every self-attention."""
    keys = [key for key in patcher.model_state_dict() if key.endswith(("attn1.to_k.weight", "img_attn.qkv.weight"))]
    generator = torch.Generator().manual_seed(1)
    shapes = {key: patcher.get_model_object(key).shape for key in keys}
    patcher.add_patches({key: (torch.randn(shape, generator=generator) * 0.5,) for key, shape in shapes.items()})
    return patcher


def pictures(family: str, model: Any, offloaded: list[bool]) -> list[Tensor]:
    """A picture that follows a latent, twice, and one that follows a recording."""

    def watched(patcher: Any) -> Any:
        def note(executor: Any, *args: Any, **kwargs: Any) -> Any:
            offloaded.append(patcher.model.model_lowvram)
            return executor(*args, **kwargs)

        patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "note", note)
        return patcher

    def run(patcher: Any, seed: int) -> Tensor:
        noise = tiny_latent(family, seed=seed)
        prompts = tiny_prompt(family, 1), tiny_prompt(family, 2)
        return sample(watched(patcher), noise, *prompts, cfg=FAMILIES[family].cfg, steps=2)

    blocks = frozenset(attentions_of(model, "test").blocks)
    followed = Reference(tiny_latent(family, seed=3), None, 5)
    guided = apply_refdrop(model, RefDropSettings(0.4, blocks, followed, cache=ReferenceCache(64 * MIB)))
    recorded = RecordedRun(model, blocks, 1, 64 * MIB, False)
    run(apply_recorder(model, recorded), 4)
    return [
        run(guided, 0),
        run(guided, 1),
        run(apply_refdrop(model, RefDropSettings(0.4, blocks, recorded=recorded)), 1),
    ]


@pytest.mark.parametrize(("family", "state"), [("sd15", "NO_VRAM"), ("flux", "LOW_VRAM")])
def test_the_pictures_are_the_same(family: str, state: str) -> None:
    plenty: list[bool] = []
    want = pictures(family, lora(tiny_model(family)), plenty)
    little: list[bool] = []
    with scarce_memory(state):
        got = pictures(family, lora(tiny_model(family)), little)
    assert not any(plenty) and all(little)
    # Weights that are cast at each use lie otherwise in memory: the host's own pictures differ by rounding, too.
    assert all(distance(one, other) < 1e-5 for one, other in zip(got, want, strict=True))
