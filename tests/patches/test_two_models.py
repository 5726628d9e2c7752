"""Guiders with a second model or a third prompt, and nodes that write a model into a file."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import comfy.samplers
import pytest
import torch
import tryon
from comfy_extras.nodes_custom_sampler import DualCFGGuider, DualModelGuider
from comfy_extras.nodes_perpneg import PerpNegGuider, perp_neg
from families import FAMILIES, tiny_latent, tiny_model, tiny_prompt
from naive_deadiff import random_image
from p3s_support import VISION_WIDTH
from refattention.core.deadiff.settings import DEADiffSettings
from refattention.core.deadiff.wrappers import apply_deadiff
from refattention.core.p3s.adapter import new_adapter
from refattention.core.p3s.settings import Adapter, P3SSettings
from refattention.core.p3s.wrappers import apply_p3s
from refattention.core.patches.reference_pass import Reference
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from sampling import bringing, distance, guide_all, latent, sample
from tiny_family import random_model
from torch import Tensor

PROMPTS = tiny_prompt("sd15", 1), tiny_prompt("sd15", 2)
CFG = 4.0
REFERENCE = Reference(tiny_latent("sd15", seed=3), None, 5)
IMAGE = random_image(tiny_model("sd15"))


@functools.cache
def other_model(family: str = "sd15") -> Any:
    """Of the same build as the tiny one, with other weights."""
    patcher = random_model(FAMILIES[family])
    with torch.no_grad():
        for weight in patcher.model.diffusion_model.state_dict().values():
            weight.mul_(0.9)
    return patcher


def refdrop(patcher: Any) -> Any:
    return apply_refdrop(patcher, RefDropSettings(0.5, guide_all(patcher), REFERENCE))


def p3s(patcher: Any, network: Any = None) -> Any:
    adapter = network and Adapter(network, latent(1, 5, VISION_WIDTH, seed=8), False)
    return apply_p3s(patcher, P3SSettings(REFERENCE, adapter, value_strength=0.2))


def with_adapter(patcher: Any) -> Any:
    return p3s(patcher, new_adapter(patcher, VISION_WIDTH, seed=0))


def styled(patcher: Any) -> Any:
    return apply_deadiff(patcher, DEADiffSettings(IMAGE))


METHODS: dict[str, Callable[[Any], Any]] = {"RefDrop": refdrop, "P3S": p3s, "DEADiff": styled}


def plain(patcher: Any) -> Any:
    return patcher


def one_step(guider: Any) -> Tensor:
    noise, sampler = tiny_latent("sd15"), comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        return guider.sample(
            noise, torch.zeros_like(noise), sampler, torch.tensor([10.0, 0.0]), disable_pbar=True, seed=7
        )


def by_two(patcher: Any, negative: Any) -> Tensor:
    return one_step(DualModelGuider.execute(patcher, PROMPTS[0], CFG, negative, PROMPTS[1])[0])


def by_one(patcher: Any, prompt: Any) -> Tensor:
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(prompt, prompt)
    guider.set_cfg(1.0)
    return one_step(guider)


def with_cfg(patcher: Any) -> Any:
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(*PROMPTS)
    guider.set_cfg(CFG)
    return guider


@pytest.mark.parametrize("method", METHODS)
def test_what_is_on_the_guiders_model_acts_on_the_second_one_as_well(method: str) -> None:
    """As ComfyUI's own patches do there. DEADiff's negative half has the tokens of no picture."""
    act, other = METHODS[method], other_model()
    positive = by_one(act(tiny_model("sd15")), PROMPTS[0])
    if method == "DEADiff":
        negative = by_one(apply_deadiff(other, DEADiffSettings(IMAGE, strength=1e-30)), PROMPTS[1])
    else:
        negative = by_one(act(other), PROMPTS[1])
    want = negative + CFG * (positive - negative)
    assert distance(by_two(act(tiny_model("sd15")), other), want) < 1e-4
    assert distance(by_two(tiny_model("sd15"), other), want) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_on_the_second_model_alone_it_is_refused(method: str) -> None:
    """There nobody would ask it, be it another checkpoint or the same one."""
    act = METHODS[method]
    for own, negative in itertools.product((plain, act), (other_model(), tiny_model("sd15"))):
        with pytest.raises(RuntimeError, match=r"only on the own model of ComfyUI's guider: not on one .* beside"):
            by_two(own(tiny_model("sd15")), act(negative))


@pytest.mark.parametrize("act", [*METHODS.values(), with_adapter])
def test_one_checkpoint_for_both_halves_is_ordinary_guidance(act: Callable[[Any], Any]) -> None:
    """Be it the node's output for both, or the model without the node for the negative half."""
    guided = act(tiny_model("sd15"))
    want = one_step(with_cfg(guided))
    for other in (guided, guided.clone(), tiny_model("sd15")):
        assert distance(by_two(guided, other), want) < 1e-5


def test_a_second_model_that_a_method_cannot_act_on_is_refused() -> None:
    lacking, other_build = (with_adapter, other_model()), (refdrop, other_model("sd2"))
    for act, negative in (lacking, other_build):
        with pytest.raises(RuntimeError, match=r"cannot act on the further model of this guider"):
            by_two(act(tiny_model("sd15")), negative)


@pytest.mark.parametrize("act", [refdrop, p3s, with_adapter])
def test_each_of_three_prompts_has_its_own_look_at_the_reference(act: Callable[[Any], Any]) -> None:
    prompts = *PROMPTS, tiny_prompt("sd15", 3)
    guided = act(tiny_model("sd15"))
    first, second, third = (by_one(guided, prompt) for prompt in prompts)
    dual = one_step(DualCFGGuider.execute(guided, *prompts, 3.0, 2.0, "regular")[0])
    assert distance(dual, third + 2.0 * (second - third) + 3.0 * (first - second)) < 1e-5
    perpendicular = one_step(PerpNegGuider.execute(guided, *prompts, 3.0, 1.5)[0])
    assert distance(perpendicular, perp_neg(first, first, second, third, 1.5, 3.0)) < 1e-5
    plain_steps = [by_one(tiny_model("sd15"), prompt) for prompt in prompts]
    assert min(distance(*each) for each in zip(plain_steps, (first, second, third), strict=True)) > 1e-4


@pytest.mark.parametrize("act", [refdrop, p3s, with_adapter])
def test_a_lora_that_the_prompts_bring_acts_on_the_reference_as_well(act: Callable[[Any], Any]) -> None:
    lora = {
        key: (0.3 * weight,)
        for key, weight in tiny_model("sd15").model.state_dict().items()
        if "attn1" in key and "output_blocks" in key
    }
    brought = [bringing(prompt, lora) for prompt in PROMPTS]
    loaded = tiny_model("sd15").clone()
    loaded.add_patches(lora)
    noise = tiny_latent("sd15")
    got, want = sample(act(tiny_model("sd15")), noise, *brought), sample(act(loaded), noise, *PROMPTS)
    assert distance(got, want) < 1e-5
    assert distance(want, sample(act(tiny_model("sd15")), noise, *PROMPTS)) > 1e-3


def test_what_is_saved_is_the_model_without_a_method() -> None:
    """ModelSave and CheckpointSave ask the model for it."""
    want = tiny_model("sd15").state_dict_for_saving()
    for act in (*METHODS.values(), with_adapter):
        got = act(tiny_model("sd15")).state_dict_for_saving()
        assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)


def test_a_leffa_model_is_not_saved_without_its_reference_unet() -> None:
    with pytest.raises(RuntimeError, match=r"A Leffa model cannot be saved as a checkpoint"):
        tryon.model().state_dict_for_saving()
