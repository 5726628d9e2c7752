"""The reference is paid for once: what is kept between runs, what makes it worthless, and what a budget does."""

from __future__ import annotations

import gc
import logging
import weakref
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management as management
import pytest
import torch
from comfy.model_patcher import set_model_options_patch_replace
from comfy.patcher_extension import WrappersMP
from comfy.samplers import calc_cond_batch
from families import FAMILIES, tiny_latent, tiny_model, tiny_prompt
from refattention.core.patches.families.table import attentions_of
from refattention.core.patches.passes import is_reference_pass
from refattention.core.patches.reference_pass import Reference
from refattention.core.refdrop.cache import ReferenceCache, cheap_to_repeat
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from sampling import distance, sample
from torch import Tensor

MIB = 2**20
REFERENCE_SIZE = (6, 8)


@dataclass
class Passes:
    """Counts forward passes of the reference, and their chunks."""

    chunks: list[list[int]] = field(default_factory=list)

    def watch(self, patcher: Any) -> Any:
        patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "refattention.count", self._count)
        return patcher

    def _count(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if tuple(x.shape[-2:]) == REFERENCE_SIZE:
            self.chunks.append(args[4]["cond_or_uncond"])
        return executor(x, *args, **kwargs)

    def take(self) -> int:
        count, self.chunks = len(self.chunks), []
        return count


def guided(family: str, cache: ReferenceCache | None, positive: Any = None, **settings: Any) -> tuple[Any, Passes]:
    patcher, passes = tiny_model(family), Passes()
    reference = Reference(tiny_latent(family, seed=3, size=REFERENCE_SIZE, frames=1), positive, 5)
    blocks = frozenset(attentions_of(patcher, "test").blocks)
    return passes.watch(
        apply_refdrop(patcher, RefDropSettings(0.5, blocks, reference, cache=cache, **settings))
    ), passes


def run(family: str, patcher: Any, prompt: int = 1, seed: int = 0, **settings: Any) -> Tensor:
    size = settings.pop("size", None)
    noise = tiny_latent(family, seed=seed, size=size)
    cfg = FAMILIES[family].cfg
    prompts = [tiny_prompt(family, number) for number in (prompt, settings.pop("negative", 2))]
    return sample(patcher, noise, *prompts, **{"steps": 3, "cfg": cfg, **settings})


@pytest.mark.parametrize("family", ["sd15", "flux", "sd35", "wan21", "svd"])
def test_the_second_image_does_not_pass_the_reference_again(family: str) -> None:
    """Another prompt, seed and size; the same picture to the bit as without a cache."""
    own = tiny_prompt(family, 7)
    patcher, passes = guided(family, ReferenceCache(64 * MIB), own)
    plain, _ = guided(family, None, own)
    assert torch.equal(run(family, patcher), run(family, plain))
    assert passes.take() == 3
    for other in ({"prompt": 8}, {"seed": 9}, {"prompt": 8, "size": (10, 6)}):
        assert torch.equal(run(family, patcher, **other), run(family, plain, **other))
        assert passes.take() == 0


@pytest.mark.parametrize("has_prompt", [True, False])
def test_another_prompt_is_told_where_it_costs_a_pass(has_prompt: bool) -> None:
    shown: list[str] = []
    own = tiny_prompt("sd15", 7) if has_prompt else None
    patcher, _ = guided("sd15", ReferenceCache(64 * MIB, show=shown.append), own)
    for change in ({}, {"prompt": 8}, {"prompt": 8, "seed": 9}):
        run("sd15", patcher, **change)
    run("sd15", lora(patcher))
    told = ["reference_positive" in text for text in shown]
    assert told == [False, not has_prompt, False, False]


def lora(patcher: Any) -> Any:
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_k.weight"
    patcher.add_patches({key: (torch.ones_like(patcher.get_model_object(key)),)})
    return patcher


def other_attention(patcher: Any) -> Any:
    patcher.set_model_attn1_patch(lambda n, context, value, extra_options: (n, context, value))
    return patcher


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        (None, {"steps": 4}),
        (None, {"prompt": 8}),
        (None, {"negative": 8}),
        (None, {"cfg": 1.0}),
        (lora, {}),
        (other_attention, {}),
    ],
    ids=["schedule", "prompt", "negative prompt", "halves", "weights", "attention patch"],
)
def test_what_the_reference_depends_on_is_passed_anew(change: Any, settings: dict[str, Any]) -> None:
    """Without a prompt of its own the reference is read with the sampler's."""
    patcher, passes = guided("sd15", ReferenceCache(64 * MIB))
    plain, _ = guided("sd15", None)
    run("sd15", patcher)
    passes.take()
    other, plain = (patcher, plain) if change is None else (change(patcher.clone()), change(plain))
    assert torch.equal(run("sd15", other, **settings), run("sd15", plain, **settings))
    is_kept_too = "cfg" in settings or "steps" in settings  # other halves and noise levels have places of their own
    asked = settings.get("steps", 3) - 2 * ("steps" in settings)  # the first and the last noise level are the same
    assert passes.take() == asked
    run("sd15", patcher)
    assert passes.take() == (0 if is_kept_too else 3)


def test_two_stages_of_a_picture_find_what_they_kept() -> None:
    """Each stage is a run with a schedule of its own; neither drops what the other will ask for again."""
    cache = ReferenceCache(64 * MIB)
    patcher, passes = guided("sd15", cache)
    plain, _ = guided("sd15", None)
    for expected in (3 + 2 - 2, 0, 0):  # the first and the last noise level are the same
        for steps in (3, 2):
            assert torch.equal(run("sd15", patcher, steps=steps), run("sd15", plain, steps=steps))
        assert passes.take() == expected


def test_by_itself_it_takes_a_third_of_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked anew in each run; what it has is taken from that memory already."""
    cache = ReferenceCache(None)
    patcher, passes = guided("sd15", cache)
    kept = 0
    for free in (6 * MIB, 300):
        monkeypatch.setattr(management, "get_free_memory", lambda *_, free=free, **__: free)
        run("sd15", patcher)
        assert cache.budget == kept + free // 3
        assert bool(passes.take()) == (kept == 0)
        kept = cache.size
    assert kept > 0


@pytest.mark.parametrize("order", [("dpm_fast", "euler"), ("euler", "dpm_fast")])
def test_looks_that_serve_several_steps_are_kept_by_noise_level(order: tuple[str, str]) -> None:
    patcher, _ = guided("sd15", ReferenceCache(64 * MIB), reference_every=2)
    for sampler in order:
        plain, _ = guided("sd15", None, reference_every=2)
        settings = {"steps": 5, "sampler": sampler}
        assert torch.equal(run("sd15", patcher, **settings), run("sd15", plain, **settings))


def test_what_no_run_asks_for_makes_room() -> None:
    whole = ReferenceCache(64 * MIB)
    run("sd15", guided("sd15", whole)[0])
    cache = ReferenceCache(whole.size)
    patcher, passes = guided("sd15", cache)
    run("sd15", patcher)
    for _ in range(6):
        passes.take()
        run("sd15", patcher, steps=2)
    assert passes.take() == 0  # the first schedule's noise levels are gone


def test_what_cannot_be_compared_is_not_kept() -> None:
    text, _ = tiny_prompt("sd15", 7)[0]
    patcher, passes = guided("sd15", ReferenceCache(64 * MIB), [[text, {"anything": object()}]])
    for _ in range(2):
        run("sd15", patcher)
        assert passes.take() == 3


def test_what_other_nodes_leave_in_a_prompt_is_compared_whatever_its_keys() -> None:
    text, _ = tiny_prompt("sd15", 7)[0]
    patcher, passes = guided("sd15", ReferenceCache(64 * MIB), [[text, {"anything": {1: 2.0, "one": 3}}]])
    for expected in (3, 0):
        run("sd15", patcher)
        assert passes.take() == expected


def test_combined_prompts_keep_their_own_reference() -> None:
    def combined(patcher: Any) -> Tensor:
        positive = [*tiny_prompt("sd15", 1), *tiny_prompt("sd15", 8)]
        return sample(patcher, tiny_latent("sd15"), positive, tiny_prompt("sd15", 2))

    patcher, passes = guided("sd15", ReferenceCache(64 * MIB))
    first = combined(patcher)
    passes.take()
    assert torch.equal(combined(patcher), first)
    assert passes.take() == 0


def test_a_budget_that_is_too_small_keeps_a_part(caplog: pytest.LogCaptureFixture) -> None:
    whole = ReferenceCache(64 * MIB)
    first = run("sd15", guided("sd15", whole)[0])
    cache = ReferenceCache(whole.size * 3 // 4)
    patcher, passes = guided("sd15", cache)
    with caplog.at_level(logging.INFO):
        for expected in (3, 1, 1):
            assert torch.equal(run("sd15", patcher), first)
            assert passes.take() == expected
    assert cache.size == whole.size * 2 // 3
    assert "2 looks at the reference kept (0 of 0 MiB), 4 of them used again so far" in caplog.text


def test_half_precision_takes_half_the_memory() -> None:
    whole, half = ReferenceCache(64 * MIB), ReferenceCache(64 * MIB, is_half=True)
    want = run("flux", guided("flux", whole)[0])
    patcher, passes = guided("flux", half)
    first = run("flux", patcher)
    passes.take()
    got = run("flux", patcher)
    assert passes.take() == 0
    assert torch.equal(got, first)  # rounded from the start: no picture depends on what ran before it
    assert half.size * 2 == whole.size
    assert 0 < distance(got, want) < 1e-3


def test_the_cache_is_as_large_as_the_keys_and_values() -> None:
    cache = ReferenceCache(64 * MIB)
    run("flux", guided("flux", cache)[0])
    image_tokens, width, layers, steps = 3 * 4, 64, 4, 3
    assert cache.size == image_tokens * width * 2 * layers * steps * 4


def test_the_cache_goes_with_the_model() -> None:
    cache = ReferenceCache(64 * MIB)
    patcher, _ = guided("sd15", cache)
    run("sd15", patcher)
    gone = weakref.ref(cache)
    del patcher, cache
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(("every", "passes_of_5_steps"), [(1, 5), (2, 3), (5, 1), (9, 1)])
def test_one_look_serves_several_steps(every: int, passes_of_5_steps: int) -> None:
    patcher, passes = guided("sd15", None, reference_every=every)
    got = run("sd15", patcher, steps=5)
    assert passes.take() == passes_of_5_steps
    plain, _ = guided("sd15", None)
    assert torch.equal(got, run("sd15", plain, steps=5)) == (every == 1)


def test_kept_looks_serve_several_steps() -> None:
    patcher, passes = guided("flux", ReferenceCache(64 * MIB), reference_every=2)
    first = run("flux", patcher, steps=4)
    assert passes.take() == 2
    assert torch.equal(run("flux", patcher, steps=4), first)
    assert passes.take() == 0


def with_more_guidance(patcher: Any) -> Any:
    """Two guidances in a row that evaluate the prompt again, each without the attention of another block."""
    for block in (("input", 1), ("middle", 0)):

        def without(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
            return v

        def guide(args: dict[str, Any], block: Any = block, without: Any = without) -> Tensor:
            options = set_model_options_patch_replace(args["model_options"].copy(), without, "attn1", *block)
            (worse,) = calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
            return args["denoised"] + 2 * (args["cond_denoised"] - worse)

        patcher.set_model_sampler_post_cfg_function(guide)
    return patcher


def test_each_guidance_that_evaluates_the_model_again_has_a_look_of_its_own() -> None:
    """The same prompt at the same noise level, but with other patches, so the reference is seen with them, too."""
    (plain, passes), (patcher, kept) = guided("sd15", None), guided("sd15", ReferenceCache(64 * MIB))
    plain, patcher = with_more_guidance(plain), with_more_guidance(patcher)
    want = run("sd15", plain)
    for expected in (9, 0):
        assert torch.equal(run("sd15", patcher), want)
        assert kept.take() == expected
    assert passes.take() == 9
    seldom, passes = guided("sd15", None, reference_every=2)
    run("sd15", with_more_guidance(seldom), steps=4)
    assert passes.take() == 6  # three looks in each of two intervals
    # In one step a look serves nothing but its own evaluation.
    one = [run("sd15", with_more_guidance(guided("sd15", None, reference_every=n)[0]), steps=1) for n in (1, 2)]
    assert torch.equal(*one)


def test_halves_may_share_the_conditional_pass() -> None:
    patcher, passes = guided("sd15", None, share_conditional=True)
    shared = run("sd15", patcher)
    assert passes.chunks == [[0]] * 3
    plain, passes = guided("sd15", None)
    assert distance(shared, run("sd15", plain)) > 1e-5
    assert passes.chunks == [[1, 0]] * 3
    # With the same prompt in both halves their passes are the same.
    assert distance(run("sd15", patcher, negative=1), run("sd15", plain, negative=1)) < 1e-5


def layers_read(patcher: Any) -> list[tuple[str, int]]:
    """The blocks that passes of the reference go through from now on."""
    seen: list[tuple[str, int]] = []

    def look(n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any]) -> tuple[Tensor, ...]:
        if is_reference_pass(extra_options):
            seen.append(extra_options["block"])
        return n, context, value

    patcher.set_model_attn1_patch(look)
    return seen


@pytest.mark.parametrize(("missing", "thinned"), [(0, 0), (1, 1), (2, 2)])
@pytest.mark.parametrize("is_half", [False, True])
def test_noise_levels_give_up_their_first_block_for_one_more(missing: int, thinned: int, is_half: bool) -> None:
    """The budget lacks so many times what the first block takes; the later blocks are not read again."""
    whole = ReferenceCache(64 * MIB, is_half)
    run("sd15", guided("sd15", whole)[0])
    first_block = 6 * 8 * 32 * 2 * 2 * (2 if is_half else 4)  # tokens, width, K and V, halves
    cache = ReferenceCache(whole.size - missing * first_block, is_half)
    patcher, _ = guided("sd15", cache)
    seen = layers_read(patcher)
    first = run("sd15", patcher)
    assert len(seen) == 3 * len(attentions_of(patcher, "test").blocks)
    assert cache.size == whole.size - thinned * first_block
    seen.clear()
    for _ in range(2):
        assert (distance if is_half else torch.dist)(run("sd15", patcher), first) <= (1e-3 if is_half else 0)
    assert seen == 2 * thinned * [("input", 1)]


def test_blocks_are_given_up_only_where_they_take_more_memory_than_time() -> None:
    def sizes(*each: int) -> dict[Any, int]:
        return {(("input", number), 0): size for number, size in enumerate(each)}

    assert cheap_to_repeat(sizes(4, 4, 2, 1, 2, 4)) == {("input", 0), ("input", 1)}
    assert cheap_to_repeat(sizes(2, 2, 2)) == cheap_to_repeat(sizes(1, 2, 3)) == cheap_to_repeat(sizes(1)) == set()
