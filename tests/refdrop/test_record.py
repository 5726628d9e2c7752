"""A recorded run as the reference: the same pictures as with the reference at hand, and what it refuses."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy.patcher_extension import PatcherInjection, WrappersMP
from families import FAMILIES, random_model, tiny_latent, tiny_model, tiny_prompt
from refattention.core.patches.families.table import attentions_of
from refattention.core.patches.reference_pass import Reference
from refattention.core.refdrop.files import load_run, save_run
from refattention.core.refdrop.recorded_run import RecordedRun
from refattention.core.refdrop.recorder import apply_recorder
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from sampling import bringing, distance, sample
from torch import Tensor

MIB = 2**20


def blocks_of(patcher: Any) -> frozenset[tuple[str, int]]:
    return frozenset(attentions_of(patcher, "test").blocks)


def run(family: str, patcher: Any, noise: Tensor, prompt: int = 1, negative: int = 2, **settings: Any) -> Tensor:
    prompts = (tiny_prompt(family, number) for number in (prompt, negative))
    return sample(patcher, noise, *prompts, **{"steps": 3, "cfg": FAMILIES[family].cfg, **settings})


def record(
    family: str, noise: Tensor, given: Reference | None = None, references: int = 1, model: Any = None, **settings: Any
) -> RecordedRun:
    """A recording of all blocks; what the run paints is that of an unpatched model."""
    model = model or tiny_model(family)
    budget, is_half = settings.pop("budget", 64 * MIB), settings.pop("is_half", False)
    recorded = RecordedRun(model, blocks_of(model), references, budget, is_half)
    painted = run(family, apply_recorder(model, recorded, given), noise, **settings)
    if given is None:
        assert torch.equal(painted, run(family, model, noise, **settings))
    return recorded


def guided(model: Any, recorded: RecordedRun, strength: float = 0.4, **settings: Any) -> Any:
    return apply_refdrop(model, RefDropSettings(strength, blocks_of(model), recorded=recorded, **settings))


@pytest.mark.parametrize("family", ["sd15", "flux", "sd35"])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_equals_a_reference_that_is_sampled_along(family: str, sampler: str) -> None:
    noise = tiny_latent(family, batch=3)
    model = tiny_model(family)
    along = apply_refdrop(model, RefDropSettings(0.4, blocks_of(model), batch_references=2))
    want = run(family, along, noise, sampler=sampler)[2:]
    recorded = record(family, noise[:2], references=2, sampler=sampler)
    assert distance(run(family, model, noise[2:], sampler=sampler), want) > 1e-4
    assert distance(run(family, guided(model, recorded), noise[2:], sampler=sampler), want) < 1e-5


@pytest.mark.parametrize("family", ["sd15", "flux", "sd35", "wan21"])
def test_a_finished_picture_equals_its_passes(family: str) -> None:
    """Prompt, seed and size of what is painted are others; no further pass is made."""
    model, picture = tiny_model(family), tiny_latent(family, seed=3, size=(6, 8))
    reference = Reference(picture, tiny_prompt(family, 7), 5)
    passed = apply_refdrop(model, RefDropSettings(0.4, blocks_of(model), reference))
    recorded = record(family, picture, Reference(picture, None, 5), prompt=7)
    passes = []

    def count(executor: Any, *args: Any, **kwargs: Any) -> Any:
        passes.append(args)
        return executor(*args, **kwargs)

    replayed = guided(model, recorded)
    replayed.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "count", count)
    for noise in (tiny_latent(family, seed=1), tiny_latent(family, seed=2, size=(10, 6))):
        assert torch.equal(run(family, replayed, noise), run(family, passed, noise))
    assert len(passes) == 6
    # heun sees the levels in between twice
    assert torch.equal(run(family, replayed, noise, sampler="heun"), run(family, passed, noise, sampler="heun"))


def test_the_first_frames_of_a_video_are_recorded() -> None:
    recorded = record("wan21", tiny_latent("wan21"), references=2)
    tokens, width, layers, halves, steps = 4 * 6, 48, 2, 2, 3
    assert recorded.size == 2 * tokens * width * 2 * layers * halves * steps * 4
    assert guided(tiny_model("wan21"), recorded).model_options["transformer_options"]["refattention.refdrop"]


def test_masks_and_concat_act_on_a_recording_too() -> None:
    model, picture, noise = tiny_model("sd15"), tiny_latent("sd15", seed=3), tiny_latent("sd15")
    recorded = record("sd15", picture, Reference(picture, None, 5))
    for settings in (
        {"reference_mask": torch.eye(8)[None]},
        {"mask": torch.eye(8)[None]},
        {"concat": True},
        {"end_percent": 0.5},
    ):
        passed = apply_refdrop(
            model, RefDropSettings(0.4, blocks_of(model), Reference(picture, tiny_prompt("sd15", 1), 5), **settings)
        )
        assert torch.equal(run("sd15", guided(model, recorded, **settings), noise), run("sd15", passed, noise))


def test_half_precision_takes_half_the_memory() -> None:
    noise, other = tiny_latent("sd15"), tiny_latent("sd15", seed=1)
    whole, half = record("sd15", noise), record("sd15", noise, is_half=True)
    assert half.size * 2 == whole.size
    pictures = [run("sd15", guided(tiny_model("sd15"), each), other) for each in (whole, half)]
    assert 0 < distance(*pictures) < 1e-3


def test_a_guided_run_can_be_recorded() -> None:
    """A story in which each picture follows the one before."""
    model, noise = tiny_model("flux"), tiny_latent("flux", batch=3).split(1)
    second = guided(model, record("flux", noise[0]))
    third = guided(model, record("flux", noise[1], model=second))
    assert distance(run("flux", third, noise[2]), run("flux", guided(model, record("flux", noise[1])), noise[2])) > 1e-3


def test_all_prompts_of_a_half_have_their_own_recording() -> None:
    model, noise = tiny_model("sd15"), tiny_latent("sd15", batch=2)
    prompts = [*tiny_prompt("sd15", 1), *tiny_prompt("sd15", 8)], tiny_prompt("sd15", 2)
    want = sample(apply_refdrop(model, RefDropSettings(0.4, blocks_of(model))), noise, *prompts)[1:]
    recorded = RecordedRun(model, blocks_of(model), 1, 64 * MIB, False)
    sample(apply_recorder(model, recorded), noise[:1], *prompts)
    assert distance(sample(guided(model, recorded), noise[1:], *prompts), want) < 1e-5


def lora(patcher: Any) -> Any:
    patcher = patcher.clone()
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_k.weight"
    patcher.add_patches({key: (torch.ones_like(patcher.get_model_object(key)),)})
    return patcher


def test_another_model_is_refused() -> None:
    recorded = record("sd15", tiny_latent("sd15"))
    with pytest.raises(ValueError, match="recorded with a SD15 model, but the connected one is Flux"):
        guided(tiny_model("flux"), recorded)
    with pytest.raises(ValueError, match=r"recorded with other weights \(a LoRA\) than"):
        guided(lora(tiny_model("sd15")), recorded)
    with pytest.raises(ValueError, match="recorded with other weights"):
        run("sd15", lora(guided(tiny_model("sd15"), recorded)), tiny_latent("sd15"))
    other = random_model(FAMILIES["sd15"])
    guided(other, recorded)  # the same weights, as of the same file loaded twice
    with torch.no_grad():
        next(other.model.diffusion_model.parameters()).mul_(1.02)
    with pytest.raises(ValueError, match="recorded with another checkpoint than"):
        guided(other, record("sd15", tiny_latent("sd15")))


NOTHING = PatcherInjection(lambda patcher: None, lambda patcher: None)


def tiny_sd15(is_tellable: bool) -> Any:
    """With something beside its weights, unless they are to be told by their numbers alone."""
    patcher = tiny_model("sd15")
    if not is_tellable:
        patcher.set_injections("other node", [NOTHING])
    return patcher


@pytest.mark.parametrize("is_tellable", [True, False])
def test_the_same_model_loaded_anew_is_the_same(is_tellable: bool) -> None:
    """As *TorchCompileModel* has ComfyUI do it under dynamic VRAM: another module, with the same weights."""
    plain, noise = tiny_sd15(is_tellable), tiny_latent("sd15", seed=1)
    recorded = record("sd15", tiny_latent("sd15"), model=plain)
    anew = plain.clone()
    anew.cached_patcher_init = (lambda disable_dynamic: random_model(FAMILIES["sd15"]), ())
    anew = anew.clone(force_deepcopy=True)
    assert anew.model is not plain.model
    assert torch.equal(run("sd15", guided(anew, recorded), noise), run("sd15", guided(plain, recorded), noise))


@pytest.mark.parametrize("is_tellable", [True, False])
def test_prompts_with_hooks_follow_a_recording(is_tellable: bool) -> None:
    """For them ComfyUI gives the patches of the model's weights a new number in each run."""
    model, noise = tiny_sd15(is_tellable), tiny_latent("sd15", seed=1)
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_k.weight"
    change = {key: (torch.ones_like(model.get_model_object(key)),)}
    prompts = bringing(tiny_prompt("sd15", 1), change), tiny_prompt("sd15", 2)
    recorded = RecordedRun(model, blocks_of(model), 1, 64 * MIB, False)
    sample(apply_recorder(model, recorded), tiny_latent("sd15"), *prompts)
    got = sample(guided(model, recorded), noise, *prompts)
    assert distance(got, sample(model, noise, *prompts)) > 1e-3
    anew = bringing(tiny_prompt("sd15", 1), {key: (change[key][0].clone(),)}), tiny_prompt("sd15", 2)
    assert torch.equal(sample(guided(model, recorded), noise, *anew), got)


def test_prompts_with_other_hooks_than_the_recorded_ones_are_refused(tmp_path: Path) -> None:
    """As a LoRA is that is loaded; the file tells it, too."""
    model, texts = tiny_model("sd15"), (tiny_prompt("sd15", 1), tiny_prompt("sd15", 2))
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_k.weight"
    one, half = (strength * torch.ones_like(model.get_model_object(key)) for strength in (1.0, 0.5))

    def hooked(weight: Tensor, place: int, keyframes: Sequence[tuple[float, float]] = ()) -> list[Any]:
        return [bringing(text, {key: (weight,)}, keyframes) if at == place else text for at, text in enumerate(texts)]

    kinds = [texts, hooked(one, 0), hooked(half, 0), hooked(one, 1), hooked(one, 0, [(0.0, 1.0), (0.5, 0.0)])]
    for number, prompts in enumerate(kinds):
        recorded = RecordedRun(model, blocks_of(model), 1, 64 * MIB, False)
        sample(apply_recorder(model, recorded), tiny_latent("sd15"), *prompts)
        save_run(recorded, path := tmp_path / f"{number}.safetensors")
        for other, asked in enumerate(kinds):
            for cache in (recorded, load_run(path)):
                if other == number:
                    sample(guided(model, cache), tiny_latent("sd15", seed=1), *asked)
                else:
                    with pytest.raises(ValueError, match=r"the (posi|nega)tive prompt brings other LoRAs \(Create"):
                        sample(guided(model, cache), tiny_latent("sd15", seed=1), *asked)


def test_blocks_that_were_not_recorded_are_refused() -> None:
    model = tiny_model("sd15")
    recorded = RecordedRun(model, frozenset({("middle", 0)}), 1, 64 * MIB, False)
    run("sd15", apply_recorder(model, recorded), tiny_latent("sd15"))
    with pytest.raises(ValueError, match=r"cache lacks \d+ of the chosen blocks, input\.\d for example"):
        guided(model, recorded)


@pytest.mark.parametrize("settings", [{"steps": 4}, {"sampler": "dpm_2"}], ids=["steps", "sampler"])
def test_noise_levels_that_were_not_recorded_are_refused(settings: dict[str, Any]) -> None:
    recorded = record("sd15", tiny_latent("sd15"))
    with pytest.raises(ValueError, match=r"the cache holds 3 noise levels from .* to .*, but this sampler asks for"):
        run("sd15", guided(tiny_model("sd15"), recorded), tiny_latent("sd15"), **settings)


def test_a_half_that_was_not_recorded_is_refused_or_shared() -> None:
    recorded, noise = record("sd15", tiny_latent("sd15"), cfg=1.0), tiny_latent("sd15", seed=1)
    with pytest.raises(ValueError, match="no recording of the negative prompt at this step"):
        run("sd15", guided(tiny_model("sd15"), recorded), noise)
    shared = run("sd15", guided(tiny_model("sd15"), recorded, share_conditional=True), noise)
    both = record("sd15", tiny_latent("sd15"), negative=1, cfg=2.0)  # whose halves are the same
    assert distance(shared, run("sd15", guided(tiny_model("sd15"), both), noise)) < 1e-5
    assert torch.isfinite(run("sd15", guided(tiny_model("sd15"), both), noise, cfg=1.0)).all()


def test_a_budget_that_is_too_small_is_refused_at_once() -> None:
    size = record("sd15", tiny_latent("sd15")).size
    record("sd15", tiny_latent("sd15"), budget=size)
    steps = []
    model = tiny_model("sd15")
    recorded = RecordedRun(model, blocks_of(model), 1, size - 1, False)
    with pytest.raises(ValueError, match=r"RefDrop Record needs about \d+ MiB for this run, but cache_mib is"):
        run("sd15", apply_recorder(model, recorded), tiny_latent("sd15"), callback=lambda step, *_: steps.append(step))
    assert not steps


def test_what_cannot_be_recorded_is_refused() -> None:
    noise = tiny_latent("sd15")
    with pytest.raises(ValueError, match="batch_references is 2, but only 1 pictures"):
        record("sd15", noise, references=2)
    text, _ = tiny_prompt("sd15", 1)[0]
    model = tiny_model("sd15")
    recorded = RecordedRun(model, blocks_of(model), 1, 64 * MIB, False)
    with pytest.raises(RuntimeError, match="a part of the picture, which cannot be recorded"):
        sample(apply_recorder(model, recorded), noise, [[text, {"area": (4, 4, 0, 0)}]], tiny_prompt("sd15", 2))
    model.set_model_attn1_replace(lambda q, k, v, extra_options: v, "middle", 0)
    recorded = RecordedRun(model, frozenset({("middle", 0)}), 1, 64 * MIB, False)
    with pytest.raises(RuntimeError, match="RefDrop Record had no effect: another patch"):
        run("sd15", apply_recorder(model, recorded), noise)


def test_the_recording_goes_with_its_last_owner() -> None:
    recorded = record("sd15", tiny_latent("sd15"))
    patcher, gone = guided(tiny_model("sd15"), recorded), weakref.ref(recorded)
    run("sd15", patcher, tiny_latent("sd15", seed=1))
    del patcher, recorded
    gc.collect()
    assert gone() is None
