"""Models of full size with random weights: a plain step, the methods' steps in the same run, and the memory of both."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import comfy.model_management as management
import leffa_models
import models
import p3s
import torch
import tryon
from comfy.model_patcher import CoreModelPatcher
from every_method import computing_in
from families import FAMILIES, tiny_model, tiny_prompt
from naive_deadiff import random_image
from refattention.core.deadiff.settings import DEADiffSettings
from refattention.core.deadiff.wrappers import apply_deadiff
from refattention.core.leffa.loader import LeffaParts, from_state_dict
from refattention.core.p3s.settings import P3SSettings
from refattention.core.p3s.wrappers import apply_p3s
from refattention.core.patches.families.table import attentions_of
from refattention.core.patches.reference_pass import Reference
from refattention.core.patches.unet import self_attention_layers
from refattention.core.refdrop.cache import ReferenceCache
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from refattention.core.refine_by_align.kernel import group_of_mask
from refattention.core.refine_by_align.observe import Look, attention_maps
from timing import alternate
from tiny_family import TinyFamily, random_prompt
from torch import Tensor

Rows = dict[str, dict[str, Any]]
REPEATS = 3
LARGE = {
    "flux": TinyFamily("Flux", models.FLUX, (16, 128, 128), cfg=1.0, pooled=768, text=4096),
    "wan": TinyFamily("WAN21_T2V", models.WAN_SMALL, (16, 21, 60, 104), frames=21, cfg=5.0, text=4096),
}
UNETS = {"sd15": (4, 64, 64), "sdxl": (4, 128, 128)}  # 512 and 1024 pixels


def rows(family: str, toy: bool) -> Rows:
    """What is measured of a family, or of a small model of its kind."""
    return leffa_rows(toy) if family == "leffa" else {name: row for name, row in _rows(family, toy)}


def _rows(family: str, toy: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    model, prompts, size, about = _model(family, toy)
    cfg = LARGE[family].cfg if family in LARGE else 7.5
    level = 0.7 if family in LARGE else 5.0
    noise = torch.randn(1, *size, generator=torch.Generator().manual_seed(1))
    plain = models.evaluation(model, noise, *prompts, cfg=cfg, level=level)
    for name, patched in _patched(family, model, size):
        ours = models.evaluation(patched, noise, *prompts, cfg=cfg, level=level)
        measured = plain(lambda step: ours(lambda patched_step: _compared(step, patched_step)))  # noqa: B023
        yield f"{family}.{name}", {**about, **measured}
    if family == "sd15":
        align = _alignment(model, size, prompts[0])
        # It samples with the same model, so each step is a run of its own.
        yield "sd15.align", {**about, **_compared(lambda: plain(lambda step: step()), align)}


def _model(family: str, toy: bool) -> tuple[Any, tuple[Any, Any], tuple[int, ...], dict[str, Any]]:
    """A model, its prompts, the size of a latent, and what is to be known about it."""
    if toy:
        tiny = {"sdxl": "sd2", "wan": "wan21"}.get(family, family)
        return tiny_model(tiny), (tiny_prompt(tiny, 1), tiny_prompt(tiny, 2)), FAMILIES[tiny].size, {"toy": tiny}
    if family in UNETS:
        prompts = models.prompt(family, 2), models.prompt(family, 3)
        return models.random_model(family, torch.float16), prompts, UNETS[family], {"dtype": "float16"}
    large, part = _that_fits(LARGE[family])
    prompts = random_prompt(large, 1, 256), random_prompt(large, 2, 256)
    return _random_weights(large), prompts, large.size, {"dtype": "bfloat16", "part_of_blocks": part}


def _that_fits(family: TinyFamily) -> tuple[TinyFamily, float]:
    """The family with as many blocks as leave half of the memory free, and which part of them that is."""
    numbers = sum(weight.numel() for weight in _network(family, torch.device("meta")).diffusion_model.parameters())
    part = min(1.0, management.get_free_memory() / 2 / (2 * numbers))
    depths = [name for name in ("depth", "depth_single_blocks", "num_layers") if name in family.config]
    fewer = {name: max(1, int(part * family.config[name])) for name in depths}
    return replace(family, config={**family.config, **fewer}), round(part, 3)


def _network(family: TinyFamily, device: torch.device) -> Any:
    return models.network(family.host_class, family.config, torch.bfloat16, device)


def _random_weights(family: TinyFamily) -> CoreModelPatcher:
    device = management.get_torch_device()
    return models.drawn(_network(family, device), device, vectors=0.1)


def _patched(family: str, model: Any, size: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    """The model with each method, by name; references are of the picture's size, or one frame."""
    one = (size[0], 1, *size[2:]) if len(size) == 4 else size
    reference = Reference(torch.randn(1, *one, generator=torch.Generator().manual_seed(4)), None, 0)
    blocks = frozenset(attentions_of(model, "gpu-check").blocks)
    yield "refdrop.live", apply_refdrop(model, RefDropSettings(0.3, blocks, reference))
    yield "refdrop.cached", apply_refdrop(model, RefDropSettings(0.3, blocks, reference, cache=ReferenceCache(2**36)))
    if family not in UNETS:
        return
    yield "p3s", apply_p3s(model, P3SSettings(reference))
    yield "p3s.adapter", apply_p3s(model, P3SSettings(reference, p3s.trained_adapter(model)))
    if family == "sd15":
        yield "deadiff", apply_deadiff(model, DEADiffSettings(random_image(model)))


def _alignment(model: Any, size: tuple[int, ...], prompt: list[Any]) -> Callable[[], Any]:
    picture, reference = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(4))
    look = Look(frozenset(self_attention_layers(model.model.diffusion_model)), (261,))
    mask = torch.zeros(size[-2:])
    mask[size[-2] // 4 : size[-2] // 2, size[-1] // 4 : size[-1] // 2] = 1

    @torch.inference_mode()
    def align() -> Any:
        return attention_maps(
            model, prompt, picture, reference, look, lambda grid: group_of_mask(mask, grid), "gpu-check"
        )

    return align


def leffa_rows(toy: bool) -> Rows:
    """A try-on at 768 x 1024: steps that look at the garment anew, and steps that have seen it."""
    width, height = (64, 48) if toy else (768, 1024)
    parts, device = _leffa(toy), str(management.get_torch_device())
    inputs = leffa_models.Inputs(width, height)

    def step(interval: int) -> Callable[[Callable[..., Any]], Any]:
        return leffa_models.ours(parts, inputs, interval, 2**30)

    def measured(evaluate: Callable[[int], Tensor], anew: Callable[[int], Tensor]) -> dict[str, Any]:
        return _compared(lambda: evaluate(981), lambda: anew(next(timesteps)))

    timesteps = iter(range(900, 0, -20))  # at each another one, so that it is looked at again
    row = step(0)(lambda evaluate: step(1)(lambda anew: measured(evaluate, anew)))
    return {"leffa.anew_vs_seen": {"device": device, "pixels": f"{width} x {height}", **row}}


def _leffa(toy: bool) -> LeffaParts:
    weights = tryon.weights("sd15") if toy else leffa_models.random_weights()
    with computing_in(torch.float32 if toy else torch.float16):
        return from_state_dict(weights, "random weights")


def _compared(a: Callable[[], Any], b: Callable[[], Any]) -> dict[str, Any]:
    """Seconds of two things side by side, and the most memory on the card during each."""
    memory = {"a_peak_MiB": _peak(a), "b_peak_MiB": _peak(b)}
    times = alternate(a, b, REPEATS)
    seconds = {"a_seconds": statistics.median(times.a), "b_seconds": statistics.median(times.b)}
    return {"ratio": round(times.ratio, 4), **{name: round(value, 5) for name, value in seconds.items()}, **memory}


def _peak(run: Callable[[], Any]) -> float | None:
    """MiB; None on a CPU, where torch does not count."""
    if not torch.cuda.is_available():
        run()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return round(torch.cuda.max_memory_allocated() / 2**20, 1)
