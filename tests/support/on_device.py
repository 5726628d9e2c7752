"""Every method as a short sampling run, to be counted on a second device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import editing
import p3s_support
import refine_support
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
from refattention.core.refine_by_align.back_ends import BackEnd, CrossAttention, InContext, Scene, SelfAttention
from refattention.core.refine_by_align.observe import Look, layers_of
from refattention.core.refine_by_align.probe import Pictures, probe
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
STEPS = 3  # the first brings what all need, the second is weighed against bringing what it gave, the third is counted


def refdrop(family: str, source: str = "latent", again: bool = False, steps: int = STEPS, **settings: Any) -> Sampling:
    """RefDrop with a latent of another size, or the first of the batch; `again` counts the second run."""

    def run(place: Place, callback: Callback | None) -> Tensor:
        patcher = tiny_model(family)
        given = dict(settings)
        if isinstance(given.get("cache"), bool):  # whether it rounds
            given["cache"] = ReferenceCache(64 * MIB, given["cache"])
        blocks = frozenset(attentions_of(patcher, "test").blocks)
        reference = Reference(tiny_latent(family, seed=3, size=(6, 8), frames=1), None, 5)
        guide = RefDropSettings(0.5, blocks, reference if source == "latent" else None, **given)
        guided = place(apply_refdrop(patcher, guide))
        if again:
            plain_run(family, guided, None, steps=steps)
        return plain_run(family, guided, callback, 1 if source == "latent" else 2, steps)

    return run


def recorded(family: str = "sd15", is_half: bool = False, **settings: Any) -> Sampling:
    """RefDrop that follows a recorded run."""

    def run(place: Place, callback: Callback | None) -> Tensor:
        patcher = place(tiny_model(family))
        blocks = frozenset(attentions_of(patcher, "test").blocks)
        kept = RecordedRun(patcher, blocks, 1, 64 * MIB, is_half)
        plain_run(family, apply_recorder(patcher, kept), None)
        guide = RefDropSettings(0.5, blocks, recorded=kept, **settings)
        return plain_run(family, apply_refdrop(patcher, guide), callback)

    return run


def recording(family: str = "sd15") -> Sampling:
    def run(place: Place, callback: Callback | None) -> Tensor:
        patcher = place(tiny_model(family))
        kept = RecordedRun(patcher, frozenset(attentions_of(patcher, "test").blocks), 1, 64 * MIB, False)
        return plain_run(family, apply_recorder(patcher, kept), callback)

    return run


def plain(family: str) -> Sampling:
    return lambda place, callback: plain_run(family, place(tiny_model(family)), callback)


def plain_run(family: str, patcher: Any, callback: Callback | None, batch: int = 1, steps: int = STEPS) -> Tensor:
    prompts = tiny_prompt(family, 1), tiny_prompt(family, 2)
    batch = 1 if FAMILIES[family].frames > 1 else batch
    cfg = FAMILIES[family].cfg
    return sample(patcher, tiny_latent(family, batch), *prompts, steps=steps, cfg=cfg, callback=callback)


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
            tryon.sample(outputs, sampler="euler", steps=STEPS)
        return tryon.sample(outputs, sampler="euler", steps=STEPS, callback=callback)

    return run


def _pixels(height: int, width: int, seed: int) -> Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed))


SCENE = Scene(_pixels(64, 96, 1), MASK[0], MASK[0, ::8, ::8][None, None])
OTHER, SEARCHED = _pixels(48, 64, 2), MASK[0, :48, :64]
NODE = "Node"
# How a model is shown a reference -> the family that paints
BACK_ENDS = {"self": "sd15", "in context": "flux", "adapter": "sd15"}


def back_end(kind: str, place: Place) -> BackEnd:
    if kind == "self":
        return SelfAttention(place(tiny_model("sd15")), editing.AnyCodec("sd15").encode, tiny_prompt("sd15", 1), NODE)
    if kind == "in context":
        model = place(editing.editing_model("flux"))
        return InContext(model, editing.AnyCodec("flux").encode, editing.prompt("flux", 1), NODE)
    tokens = torch.randn(1, 15, refine_support.CONTEXT_WIDTH, generator=torch.Generator().manual_seed(3))
    base, encode = place(refine_support.base()), refine_support.Codec().encode
    return CrossAttention(base, lambda _: (tokens, (3, 5)), encode, refine_support.prompt(1), NODE)


def look(shown: BackEnd, timesteps: tuple[int, ...]) -> Look:
    return Look(frozenset(layers_of(attentions_of(shown.model, NODE))), timesteps, seed=3)


@torch.inference_mode()
def aligned(kind: str, place: Place, timesteps: tuple[int, ...]) -> list[Tensor]:
    """The maps of Refine by Align in all layers, searched in a part of the reference."""
    shown = back_end(kind, place)
    return list(shown.maps(SCENE, [OTHER], SEARCHED, look(shown, timesteps)).values())


@torch.inference_mode()
def probed(kind: str, place: Place, timesteps: tuple[int, ...]) -> list[Tensor]:
    """What Attention Probe sees."""
    shown, pictures = back_end(kind, place), Pictures(SCENE.picture, OTHER, [(30, 30)], None)
    asked = shown.positive, pictures, shown.encode, 64, look(shown, timesteps), NODE
    found = probe(shown.model, *asked, kind == "in context")
    return [found.places, *found.layers.values()]


def painting(kind: str, strength: float | None) -> Sampling:
    """The other half of Refine by Align; None is the plain model."""

    def run(place: Place, callback: Callback | None) -> Tensor:
        shown, family = back_end(kind, place), BACK_ENDS[kind]
        negative = refine_support.prompt(2) if kind == "adapter" else tiny_prompt(family, 2)
        guided = shown.model, shown.positive, negative
        if strength is not None:
            with torch.inference_mode():
                guided = shown.guided(SCENE, [OTHER], negative, strength, 7)
        cfg = FAMILIES[family].cfg
        return sample(guided[0], tiny_latent(family), *guided[1:], steps=STEPS, cfg=cfg, callback=callback)

    return run
