"""All methods under ComfyUI's multi-GPU split, which runs the halves of the guidance on copies of the model."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management as management
import comfy.multigpu
import on_device
import p3s_support
import pytest
import torch
import tryon
from families import FAMILIES, tiny_latent, tiny_model, tiny_prompt
from naive_deadiff import random_image
from refattention.core.deadiff.settings import DEADiffSettings
from refattention.core.deadiff.wrappers import apply_deadiff
from refattention.core.p3s.network import P3SNetwork
from refattention.core.p3s.settings import P3SSettings
from refattention.core.p3s.wrappers import apply_p3s
from refattention.core.patches.families.table import attentions_of
from refattention.core.patches.reference_pass import Reference
from refattention.core.patches.sampling import Sampling, sampled
from refattention.core.refdrop.cache import ReferenceCache
from refattention.core.refdrop.recorded_run import RecordedRun
from refattention.core.refdrop.recorder import apply_recorder
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from sampling import distance, latent, model, prompt, sample
from torch import Tensor

DEVICES = [torch.device("cpu"), torch.device("cpu", 0)]
SIZE = (4, 16, 12)
CLOSE = 5e-5  # a batch of one is computed in another order than one of two
PROMPTS = prompt("sd15", 1), prompt("sd15", 2)
REFERENCE = Reference(latent(1, *SIZE, seed=3), None, 5)


class InThisThread:
    """Takes the place of ComfyUI's threads, one for each device: what is to run there runs at once."""

    def __init__(self, devices: list[torch.device]) -> None:
        self.results: dict[torch.device, Any] = {}
        SEEN.append(devices)

    def submit(self, device: torch.device, function: Callable[..., Any], *args: Any) -> None:
        self.results[device] = function(*args)

    def get_result(self, device: torch.device) -> tuple[Any, None]:
        return self.results.pop(device), None

    def shutdown(self) -> None: ...


SEEN: list[list[torch.device]] = []  # the devices of each run that was split


@pytest.fixture(autouse=True)
def two_devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two devices, with nothing loaded.

    ComfyUI cannot split a model while its list of loaded models has a gap: a clone that the garbage collector took
    together with the model that it came from, while their weights live on. Such are left by other tests, which keep
    exceptions, and when that is collected is chance.
    """
    SEEN.clear()
    management.unload_all_models()
    monkeypatch.setattr(management, "current_loaded_models", [])
    monkeypatch.setattr(management, "get_all_torch_devices", lambda exclude_current=False: DEVICES)
    monkeypatch.setattr(comfy.multigpu, "MultiGPUThreadPool", InThisThread)
    yield
    management.unload_all_models()


def copied(patcher: Any, disable_dynamic: bool = False) -> Any:
    kept = (patcher.model.model_config, getattr(patcher.model, "current_patcher", None))
    network = copy.deepcopy(patcher.model, {id(each): each for each in kept})
    return type(patcher)(network, patcher.load_device, patcher.offload_device)


def loaded(patcher: Any) -> Any:
    """A model as ComfyUI's loaders give it: it can be loaded once more."""
    patcher.cached_patcher_init = (copied, (patcher.clone(),))
    return patcher


def split(patcher: Any) -> Any:
    """What the node *MultiGPU CFG Split* makes of a model."""
    return comfy.multigpu.create_multigpu_deepclones(patcher, 2, reuse_loaded=True)


def refdrop(patcher: Any, **settings: Any) -> Any:
    settings.setdefault("reference", REFERENCE)
    return apply_refdrop(patcher, RefDropSettings(0.5, frozenset(attentions_of(patcher, "test").blocks), **settings))


METHODS: dict[str, Callable[[Any], Any]] = {
    "refdrop": refdrop,
    "refdrop_in_the_batch": lambda patcher: refdrop(patcher, reference=None),
    "refdrop_shared": lambda patcher: refdrop(patcher, share_conditional=True, reference_every=2),
    "refdrop_cached": lambda patcher: refdrop(patcher, cache=ReferenceCache(2**26)),
    "p3s": lambda patcher: apply_p3s(patcher, P3SSettings(REFERENCE)),
    "p3s_adapter": lambda patcher: p3s_support.inject(patcher, adapter=p3s_support.adapter()),
    "deadiff": lambda patcher: apply_deadiff(patcher, DEADiffSettings(random_image(patcher))),
}


@pytest.mark.parametrize("method", METHODS)
def test_split_and_whole_give_the_same(method: str) -> None:
    """Whichever of the two nodes comes first; twice, because the second run may take what the first has left."""
    noise = latent(2, *SIZE)
    want = sample(METHODS[method](model("sd15")), noise, *PROMPTS, steps=2)
    before, after = METHODS[method](split(loaded(model("sd15")))), split(METHODS[method](loaded(model("sd15"))))
    for patched in (before, before, after):
        assert distance(sample(patched, noise, *PROMPTS, steps=2), want) < CLOSE
    assert SEEN == [DEVICES] * 3
    assert distance(want, sample(model("sd15"), noise, *PROMPTS, steps=2)) > 10 * CLOSE


@pytest.mark.parametrize("family", ["sdxl", "flux", "sd35", "wan21"])
def test_other_families(family: str) -> None:
    if family == "sdxl":
        plain, texts, noise, reference = (
            model("sdxl"),
            (prompt("sdxl", 1), prompt("sdxl", 2)),
            latent(1, *SIZE),
            REFERENCE,
        )
    else:
        plain, texts, noise = tiny_model(family), (tiny_prompt(family, 1), tiny_prompt(family, 2)), tiny_latent(family)
        reference = Reference(tiny_latent(family, seed=3, frames=1), None, 5)
    cfg = max(FAMILIES.get(family, FAMILIES["sd15"]).cfg, 2.0)
    want = sample(refdrop(plain, reference=reference), noise, *texts, steps=2, cfg=cfg)
    got = sample(refdrop(split(loaded(plain)), reference=reference), noise, *texts, steps=2, cfg=cfg)
    assert distance(got, want) < CLOSE and SEEN == [DEVICES]


def test_a_run_that_is_split_is_recorded() -> None:
    noise = latent(1, *SIZE, seed=4)
    pictures = []
    for make in (lambda patcher: patcher, lambda patcher: split(loaded(patcher))):
        plain = make(model("sd15"))
        blocks = frozenset(attentions_of(plain, "test").blocks)
        recorded = RecordedRun(plain, blocks, 1, 2**28, False)
        sample(apply_recorder(plain, recorded), noise, *PROMPTS)
        guided = apply_refdrop(plain, RefDropSettings(0.5, blocks, recorded=recorded))
        pictures.append(sample(guided, latent(1, *SIZE), *PROMPTS))
    assert distance(pictures[1], pictures[0]) < CLOSE and SEEN == [DEVICES] * 2


def test_the_network_of_an_adapter_runs_where_its_half_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each device has a copy of its own, with the same weights."""
    ran, forward = [], P3SNetwork.forward

    def noting(network: P3SNetwork, latent: Tensor, *args: Any) -> Any:
        ran.append((network, len(latent)))
        return forward(network, latent, *args)

    monkeypatch.setattr(P3SNetwork, "forward", noting)
    patched = METHODS["p3s_adapter"](split(loaded(model("sd15"))))
    sample(patched, latent(2, *SIZE), *PROMPTS, steps=1)
    (one, rows), (other, more_rows) = ran
    assert one is not other and rows == more_rows == 1
    assert all(torch.equal(weight, other.state_dict()[name]) for name, weight in one.state_dict().items())


def test_leffa_split_and_whole_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    want = tryon.sample(tryon.try_on(tryon.model()))
    parts = tryon.parts("sd15")
    for part in (parts.generative, parts.reference):
        monkeypatch.setattr(part, "cached_patcher_init", (copied, (part.clone(),)))
    patcher, *rest = tryon.try_on(tryon.model(cache_bytes=2**26))
    for _ in range(2):
        assert distance(tryon.sample((split(patcher), *rest)), want) < CLOSE
    assert SEEN == [DEVICES] * 2


@pytest.mark.parametrize("kind", on_device.BACK_ENDS)
def test_refine_by_align_split_and_whole_give_the_same(kind: str) -> None:
    """Painting, and the looks before it and of the probe, which are passes of their own and leave no gap."""
    kept: list[Any] = []

    def place(patcher: Any) -> Any:
        kept.append(split(loaded(patcher)))
        return kept[-1]

    for look in (on_device.aligned,) if kind == "adapter" else (on_device.aligned, on_device.probed):
        got = look(kind, place, (261,))
        assert kept[-1] in management.loaded_models() and None not in management.loaded_models()
        want = look(kind, lambda patcher: patcher, (261,))
        assert all(distance(*pair) < CLOSE for pair in zip(got, want, strict=True))
    SEEN.clear()
    paint = on_device.painting(kind, 0.5)
    assert distance(paint(place, None), paint(lambda patcher: patcher, None)) < CLOSE
    assert SEEN == [DEVICES]


def test_what_a_node_samples_leaves_no_gap() -> None:
    """The host's own clones leave one where they are let go: the copy's parent is the clone, which goes with it."""
    whole, noise = split(loaded(model("sd15"))), latent(2, *SIZE)
    sampled(whole, *PROMPTS, noise, None, Sampling(0, 1, 2.0, "euler", "normal", 1.0), lambda step: None)
    gc.collect()
    assert None not in management.loaded_models() and SEEN == [DEVICES]
    sample(whole.clone(), noise, *PROMPTS, steps=1)
    gc.collect()  # clone and copy know each other
    assert management.loaded_models().count(None) == 1


def record(patcher: Any) -> Any:
    blocks = frozenset(attentions_of(patcher, "test").blocks)
    return apply_recorder(patcher, RecordedRun(patcher, blocks, 1, 2**28, False))


def ran(method: str) -> weakref.ref[Any]:
    """A model that was sampled with a method and let go."""
    if method == "leffa":
        patcher, *rest = tryon.try_on(tryon.model(cache_bytes=2**26))
        tryon.sample((patcher, *rest))
    else:
        patcher = {**METHODS, "record": record}[method](model("sd15"))
        sample(patcher, latent(2, *SIZE), *PROMPTS, steps=1)
    return weakref.ref(patcher)


@pytest.mark.parametrize("method", [*METHODS, "record", "leffa"])
def test_a_model_that_is_let_go_leaves_no_gap(method: str) -> None:
    """It goes at once, without the garbage collector, and what ComfyUI has loaded is again the model that it was."""
    gc.disable()
    try:
        assert ran(method)() is None
    finally:
        gc.enable()
    assert None not in management.loaded_models()
