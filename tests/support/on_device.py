"""Every method as a short sampling run, to be counted on a second device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import p3s_support
import torch
import tryon
from families import FAMILIES, tiny_latent, tiny_model, tiny_prompt
from naive_deadiff import random_image
from refattention.core.deadiff.settings import DEADiffSettings
from refattention.core.deadiff.wrappers import apply_deadiff
from refattention.core.p3s.settings import P3SSettings
from refattention.core.p3s.wrappers import apply_p3s
from refattention.core.patches.families.table import attentions_of
from refattention.core.patches.reference_pass import Reference
from refattention.core.refdrop.cache import ReferenceCache
from refattention.core.refdrop.recorded_run import RecordedRun
from refattention.core.refdrop.recorder import apply_recorder
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from sampling import latent, model, prompt, sample
from torch import Tensor

MIB = 2**20
Callback = Callable[..., None]
Place = Callable[[Any], Any]  # puts a model where it is to run
# Runs it, with a callback in the run that counts, and gives the latents
Sampling = Callable[[Place, Callback | None], Tensor]
MASK = torch.zeros(1, 64, 96)
MASK[:, 16:48, 24:] = 1
SIZE = (4, 16, 12)
STEPS = 4


def refdrop(family: str, source: str = "latent", again: bool = False, **settings: Any) -> Sampling:
    """RefDrop with a latent of another size, or the first of the batch; `again` counts the second run."""

    def run(place: Place, callback: Callback | None) -> Tensor:
        patcher = tiny_model(family)
        given = dict(settings)
        if isinstance(given.get("cache"), bool):  # whether it rounds
            given["cache"] = ReferenceCache(64 * MIB, given["cache"])
        blocks = frozenset(attentions_of(patcher, "test").layers)
        reference = Reference(tiny_latent(family, seed=3, size=(6, 8), frames=1), None, 5)
        guide = RefDropSettings(0.5, blocks, reference if source == "latent" else None, **given)
        guided = place(apply_refdrop(patcher, guide))
        if again:
            plain_run(family, guided, None)
        return plain_run(family, guided, callback, 1 if source == "latent" else 2)

    return run


def recorded(family: str = "sd15", is_half: bool = False, **settings: Any) -> Sampling:
    """RefDrop that follows a recorded run."""

    def run(place: Place, callback: Callback | None) -> Tensor:
        patcher = place(tiny_model(family))
        blocks = frozenset(attentions_of(patcher, "test").layers)
        kept = RecordedRun(patcher, blocks, 1, 64 * MIB, is_half)
        plain_run(family, apply_recorder(patcher, kept), None)
        guide = RefDropSettings(0.5, blocks, recorded=kept, **settings)
        return plain_run(family, apply_refdrop(patcher, guide), callback)

    return run


def recording(family: str = "sd15") -> Sampling:
    def run(place: Place, callback: Callback | None) -> Tensor:
        patcher = place(tiny_model(family))
        kept = RecordedRun(patcher, frozenset(attentions_of(patcher, "test").layers), 1, 64 * MIB, False)
        return plain_run(family, apply_recorder(patcher, kept), callback)

    return run


def plain(family: str) -> Sampling:
    return lambda place, callback: plain_run(family, place(tiny_model(family)), callback)


def plain_run(family: str, patcher: Any, callback: Callback | None, batch: int = 1) -> Tensor:
    prompts = tiny_prompt(family, 1), tiny_prompt(family, 2)
    batch = 1 if FAMILIES[family].frames > 1 else batch
    cfg = FAMILIES[family].cfg
    return sample(patcher, tiny_latent(family, batch), *prompts, steps=STEPS, cfg=cfg, callback=callback)


def on_demo_model(make: Callable[[Any], Any]) -> Sampling:
    """Something on the demo's SD1.5."""

    def run(place: Place, callback: Callback | None) -> Tensor:
        prompts = prompt("sd15", 1), prompt("sd15", 2)
        return sample(place(make(model("sd15"))), latent(1, *SIZE), *prompts, steps=STEPS, callback=callback)

    return run


def p3s(**settings: Any) -> Sampling:
    reference = Reference(latent(1, 4, 9, 11, seed=3), None, 5)
    return on_demo_model(lambda patcher: apply_p3s(patcher, P3SSettings(reference, **settings)))


def p3s_adapter(zeros: bool = False, **inputs: Any) -> Sampling:
    return on_demo_model(
        lambda patcher: p3s_support.inject(
            patcher, adapter=p3s_support.adapter(zeros=zeros), **{"identity_at_zero": True, **inputs}
        )
    )


def deadiff(**settings: Any) -> Sampling:
    return on_demo_model(
        lambda patcher: apply_deadiff(patcher, DEADiffSettings(image=random_image(patcher), **settings))
    )


def leffa(kind: str = "sd15", cache_bytes: int = 64 * MIB, again: bool = False, **inputs: Any) -> Sampling:
    def run(place: Place, callback: Callback | None) -> Tensor:
        outputs = tryon.try_on(place(tryon.model(kind, cache_bytes)), **inputs)
        if again:
            tryon.sample(outputs, sampler="euler")
        return tryon.sample(outputs, sampler="euler", callback=callback)

    return run
