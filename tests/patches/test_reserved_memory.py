"""The memory that ComfyUI is asked to keep free for a method: what its references really take on the device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import comfy.memory_management
import comfy.model_management as management
import p3s_support
import psutil
import pytest
import torch
import tryon
from comfy_execution.caching import RAM_CACHE_DEFAULT_RAM_USAGE, RAMPressureCache
from encoders import encoder
from families import FAMILIES, tiny_latent, tiny_model, tiny_prompt
from refattention.core.leffa.tokens import FeatureCache, ReferenceTokens
from refattention.core.models import vision
from refattention.core.models.vision import PatchEncoder
from refattention.core.p3s.adapter import trainable
from refattention.core.p3s.settings import P3SSettings
from refattention.core.p3s.training import Objective, Settings
from refattention.core.p3s.wrappers import apply_p3s
from refattention.core.patches.bank import KeyValueBank
from refattention.core.patches.families.table import attentions_of
from refattention.core.patches.reference_pass import Reference
from refattention.core.refdrop.recorded_run import RecordedRun
from refattention.core.refdrop.recorder import apply_recorder
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from sampling import sample
from torch import Tensor

Memory = list[tuple[float, float]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """The bytes asked for with each load of models that says any: those to run well, and those to run at all."""
    seen: Memory = []
    load = management.load_models_gpu

    def noting(models: Any, memory_required: float = 0, *args: Any, **kwargs: Any) -> None:
        if memory_required:
            seen.append((memory_required, kwargs["minimum_memory_required"]))
        load(models, memory_required, *args, **kwargs)

    monkeypatch.setattr(management, "load_models_gpu", noting)
    return seen


@pytest.fixture
def banks(monkeypatch: pytest.MonkeyPatch) -> list[KeyValueBank]:
    seen: list[KeyValueBank] = []
    monkeypatch.setattr(KeyValueBank, "__init__", noting_init(KeyValueBank.__init__, seen))
    return seen


def noting_init(init: Any, seen: list[KeyValueBank]) -> Any:
    def noting(bank: KeyValueBank, *args: Any) -> None:
        init(bank, *args)
        seen.append(bank)

    return noting


def run(family: str, patcher: Any, cfg: float = 0.0, positive: int = 1) -> None:
    texts = [entry for number in range(positive) for entry in tiny_prompt(family, 1 + number)]
    cfg = cfg or FAMILIES[family].cfg
    sample(patcher, tiny_latent(family), texts, tiny_prompt(family, 9), steps=1, cfg=cfg)


def extra(family: str, patcher: Any, asked: Memory, **settings: Any) -> tuple[float, float]:
    """The bytes asked for beyond those of the plain model."""
    for each in (tiny_model(family), patcher):
        run(family, each, **settings)
    plain, ours = asked
    return ours[0] - plain[0], ours[1] - plain[1]


def refdrop(family: str, references: Tensor, **settings: Any) -> Any:
    patcher = tiny_model(family)
    blocks = frozenset(attentions_of(patcher, "test").blocks)
    return apply_refdrop(patcher, RefDropSettings(0.3, blocks, Reference(references, None, 5), **settings))


# They take no reference of another size, or need more than a prompt.
UNLIKE = {"cosmos", "hidream_o1", "pid", "mochi", "wan_vace"}


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in UNLIKE])
def test_exactly_the_keys_and_values_are_reserved(family: str, asked: Memory, banks: list[KeyValueBank]) -> None:
    """A reference of another size, of one frame where the model makes videos."""
    patcher = refdrop(family, tiny_latent(family, seed=3, size=(5, 4), frames=1))
    required, least = extra(family, patcher, asked)
    assert required == pytest.approx(banks[0].size, abs=1) and least == pytest.approx(banks[0].size, abs=1)


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        ({}, {"positive": 2}),
        ({}, {"cfg": 1.0}),
        ({"share_conditional": True}, {}),
        ({"blocks": frozenset({("middle", 0)})}, {}),
    ],
    ids=["two prompts", "without guidance", "conditional alone", "one block"],
)
def test_it_is_what_is_read(settings: dict[str, Any], how: Any, asked: Memory, banks: list[KeyValueBank]) -> None:
    references = tiny_latent("sd15", 2, seed=3)
    patcher = tiny_model("sd15")
    settings = {"blocks": frozenset(attentions_of(patcher, "test").blocks), **settings}
    patched = apply_refdrop(patcher, RefDropSettings(0.3, reference=Reference(references, None, 5), **settings))
    required, least = extra("sd15", patched, asked, **how)
    # Two references at once are a larger pass than the one picture.
    assert required - 2 * (least - banks[0].size) == pytest.approx(banks[0].size, abs=1)
    assert least - banks[0].size == pytest.approx(tiny_model("sd15").model.memory_required([1, 4, 8, 12]))


def test_p3s_with_the_model_and_with_an_adapter(asked: Memory, banks: list[KeyValueBank]) -> None:
    reference = Reference(tiny_latent("sd15", seed=3), None, 5)
    required, _ = extra("sd15", apply_p3s(tiny_model("sd15"), P3SSettings(reference)), asked)
    assert required == pytest.approx(banks[0].size, abs=1)


def test_an_adapters_features_fit(asked: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    patcher, read = p3s_support.inject(p3s_support.model("sd15"), adapter=p3s_support.adapter()), []
    ((network, *_), *_) = patcher.additional_models.values()
    network.model.register_forward_hook(lambda module, inputs, output: read.append(output))
    for each in (p3s_support.model("sd15"), patcher):
        p3s_support.picture(each)
    own = {id(part): part.nbytes for features in read[0].values() for part in (features.hidden, features.cross)}
    assert sum(own.values()) <= asked[1][0] - asked[0][0] < 2 * sum(own.values())


def test_leffa_keeps_keys_and_values_of_the_garment_and_of_zeros(
    asked: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    init = ReferenceTokens.__init__

    def noting(tokens: ReferenceTokens, features: list[Tensor], keep: bool) -> None:
        seen.append(2 * sum(feature.nbytes for feature in features))
        init(tokens, features, keep)

    monkeypatch.setattr(ReferenceTokens, "__init__", noting)
    patcher, *rest = tryon.try_on(tryon.model())
    tryon.sample((patcher, *rest), steps=1)
    (required, _), pictures = asked[0], rest[2]["samples"]
    assert len(seen) == 2
    assert required - patcher.model.memory_required([2, *pictures.shape[1:]]) == pytest.approx(sum(seen), abs=1)


def test_leffa_keeps_zeros_only_while_main_memory_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI is asked to drop old results first."""
    asked, free = [], 1000
    monkeypatch.setattr(management, "get_free_memory", lambda device=None: free)
    monkeypatch.setattr(comfy.memory_management, "RAM_CACHE_HEADROOM", 600)
    monkeypatch.setattr(comfy.memory_management, "extra_ram_release", asked.append)
    cache = FeatureCache(2**20, torch.device("cpu"))
    for timestep, numbers in enumerate((100, 101)):
        cache.put("kind", timestep, [torch.zeros(numbers)])
    assert asked == [1000, 1004]
    assert cache.get("kind", 0, torch.device("cpu")) and not cache.get("kind", 1, torch.device("cpu"))


def test_comfyui_counts_and_drops_a_recording_where_main_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    model, blocks = tiny_model("sd15"), frozenset(attentions_of(tiny_model("sd15"), "test").blocks)
    recorded = RecordedRun(model, blocks, 1, 2**26, False)
    run("sd15", apply_recorder(model, recorded))
    cache = RAMPressureCache(None)
    cache.cache["record"] = SimpleNamespace(outputs=[[{"samples": tiny_latent("sd15")}], [recorded]])
    cache.used_generation["record"], cache.timestamps["record"] = cache.generation - 1, 0.0
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    assert cache.ram_release(1) - RAM_CACHE_DEFAULT_RAM_USAGE == recorded.size > 0 and not cache.cache


def test_training_makes_room_for_the_frozen_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = p3s_support.model("sd15")
    network = trainable(model, 24, seed=0)
    freed: list[float] = []
    free = management.free_memory
    monkeypatch.setattr(
        management, "free_memory", lambda size, *args, **more: freed.append(size) or free(size, *args, **more)
    )
    Objective(model, network, Settings())
    trained, frozen = (
        sum(weight.numel() for weight in one.state_dict().values()) for one in (network, model.model.diffusion_model)
    )
    assert freed[0] == 16 * trained + 4 * frozen + management.minimum_inference_memory()


def test_a_large_picture_for_an_encoder_is_announced_and_goes_through_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(management, "load_models_gpu", lambda models, memory_required: asked.append(memory_required))
    monkeypatch.setattr(vision, "TOKENS", 256)
    passes: list[int] = []
    for resolution in ("native", "4x"):  # of 4 x 4 tokens
        patches = PatchEncoder(encoder("clip"), -2, "tiles", resolution)
        encode = patches._encode
        monkeypatch.setattr(
            patches, "_encode", lambda squares, encode=encode: passes.append(len(squares)) or encode(squares)
        )
        with torch.inference_mode():
            patches.features(torch.rand(40, 150, 3), patches.layout(40, 150))
    native, large = asked
    assert passes == [passes[0], *[1] * passes[0]] and passes[0] > 1
    assert large * passes[0] == 16 * native
    assert large > 16 * 16 * 4 * 10 * 32  # of hidden states and what becomes of them
