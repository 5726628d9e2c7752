"""DEADiff together with everything else a model or a prompt may carry, and with the ways the host evaluates them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from comfy.controlnet import ControlBase
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from naive_deadiff import attach, random_image
from refattention.core.deadiff.settings import DEADiffSettings
from refattention.core.deadiff.wrappers import apply_deadiff
from refattention.core.patches.reference_pass import Reference
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from sampling import bringing, check_halves, check_nothing_stays, distance, guide_all, latent, model, prompt, sample
from torch import Tensor

SIZE = (4, 16, 12)
PROMPTS = prompt("sd15", 1), prompt("sd15", 2)


@pytest.fixture(scope="module")
def style() -> DEADiffSettings:
    return DEADiffSettings(random_image(model("sd15")))


def weight_patches(patcher: Any) -> dict[str, tuple[Tensor]]:
    """A change of every to_k and to_v of the cross-attentions, in the form of a LoRA."""
    keys = [key for key in patcher.model_state_dict() if "attn2.to_k.weight" in key or "attn2.to_v.weight" in key]
    return {key: (latent(*patcher.get_model_object(key).shape, seed=n) * 0.05,) for n, key in enumerate(keys)}


def scheduled_lora(patcher: Any) -> list[Any]:
    """A prompt whose LoRA gets stronger from step to step."""
    return bringing(prompt("sd15", 1), weight_patches(patcher), ((0.0, 0.0), (0.3, 1.0), (0.6, 3.0)))


def test_a_lora_that_changes_between_the_steps(style: DEADiffSettings) -> None:
    noise = latent(1, *SIZE)

    def run(make: Any) -> Tensor:
        patcher = make(model("sd15"))
        return sample(patcher, noise, scheduled_lora(patcher), PROMPTS[1], steps=5)

    got = run(lambda m: apply_deadiff(m, style))
    assert distance(got, run(lambda m: attach(m, style))) < 1e-4
    assert distance(got, sample(apply_deadiff(model("sd15"), style), noise, *PROMPTS, steps=5)) > 1e-3


def test_pag_gets_the_same_style(style: DEADiffSettings) -> None:
    """Its extra evaluation is of the conditional half."""
    noise = latent(1, *SIZE)
    got, want = (
        sample(PerturbedAttentionGuidance.execute(make(model("sd15"), style), 3.0)[0], noise, *PROMPTS)
        for make in (apply_deadiff, attach)
    )
    assert distance(got, want) < 1e-4


def test_with_refdrop(style: DEADiffSettings) -> None:
    noise = latent(1, *SIZE)

    def guided(patcher: Any) -> Any:
        return apply_refdrop(
            patcher, RefDropSettings(0.4, guide_all(patcher), Reference(latent(1, 4, 9, 11, seed=3), None, 5))
        )

    both = sample(guided(apply_deadiff(model("sd15"), style)), noise, *PROMPTS)
    assert distance(both, sample(apply_deadiff(guided(model("sd15")), style), noise, *PROMPTS)) < 1e-5
    assert distance(both, sample(guided(attach(model("sd15"), style)), noise, *PROMPTS)) < 1e-4
    assert distance(both, sample(apply_deadiff(model("sd15"), style), noise, *PROMPTS)) > 1e-3


@pytest.mark.parametrize("place", [("middle", 0), ("input", 1)])
def test_a_node_that_replaces_cross_attention_is_refused_in_either_order(
    style: DEADiffSettings, place: tuple[str, int]
) -> None:
    def ip_adapter(patcher: Any) -> Any:
        patched = patcher.clone()
        patched.set_model_attn2_replace(lambda q, k, v, extra_options: q, *place)
        return patched

    message = rf"DEADiff Style: another node .*IP-Adapter.* replaces the cross-attention of block {place[0]}.{place[1]}"
    with pytest.raises(RuntimeError, match=message):
        apply_deadiff(ip_adapter(model("sd15")), style)
    with pytest.raises(RuntimeError, match=message):
        sample(ip_adapter(apply_deadiff(model("sd15"), style)), latent(1, *SIZE), *PROMPTS)


def regional(patcher: Any) -> Any:
    """Two texts for each picture of the conditional half, as nodes that couple prompts to regions in the attention."""
    halves: list[int] = []

    def split(n: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        halves[:] = options["cond_or_uncond"]
        each_half = (zip(halves, each.chunk(len(halves)), strict=True) for each in (n, context, value))
        return tuple(torch.cat([rows for half, rows in some for _ in range(2 - half)]) for some in each_half)

    def joined(n: Tensor, options: dict[str, Any]) -> Tensor:
        parts = n.split([len(n) // (sum(2 - half for half in halves)) * (2 - half) for half in halves])
        return torch.cat([each.unflatten(0, (2 - half, -1)).mean(0) for half, each in zip(halves, parts, strict=True)])

    patched = patcher.clone()
    patched.set_model_attn2_patch(split)
    patched.set_model_attn2_output_patch(joined)
    return patched


def test_several_texts_of_a_picture_are_refused(style: DEADiffSettings) -> None:
    noise = latent(2, *SIZE)
    assert distance(*(sample(make(model("sd15")), noise, *PROMPTS, steps=1) for make in (regional, lambda m: m))) < 1e-4
    for both in (regional(apply_deadiff(model("sd15"), style)), apply_deadiff(regional(model("sd15")), style)):
        with pytest.raises(RuntimeError, match=r"DEADiff Style: another node of this model \(Attention Couple"):
            sample(both, noise, *PROMPTS, steps=1)


def test_an_override_that_is_already_there_is_used(style: DEADiffSettings) -> None:
    calls = []

    def override(func: Any, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(args[1].shape[1])
        return func(*args, **kwargs)

    patcher = apply_deadiff(model("sd15"), style)
    patcher.model_options["transformer_options"]["optimized_attention_override"] = override
    sample(patcher, latent(1, *SIZE), *PROMPTS, steps=1)
    assert calls.count(77 + 16) == 16 and len(calls) == 32


def test_halves_come_in_any_order_and_alone(style: DEADiffSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    run = partial(sample, noise=latent(2, *SIZE), positive=PROMPTS[0], negative=PROMPTS[1])
    check_halves(monkeypatch, partial(model, "sd15"), partial(apply_deadiff, settings=style), run)


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("combined", [False, True])
def test_one_half_and_combined_prompts(style: DEADiffSettings, cfg: float, combined: bool) -> None:
    positive = [*prompt("sd15", 1), *(prompt("sd15", 8) if combined else [])]
    noise = latent(1, *SIZE)
    got, want = (
        sample(make(model("sd15"), style), noise, positive, PROMPTS[1], cfg=cfg) for make in (apply_deadiff, attach)
    )
    assert distance(got, want) < 1e-4


def test_area_prompts_work_and_refuse_a_mask(style: DEADiffSettings) -> None:
    text, options = prompt("sd15", 8)[0]
    areas = [*prompt("sd15", 1), [text, {**options, "area": (8, 12, 4, 0), "strength": 1.0}]]
    noise = latent(1, *SIZE)
    got, want = (sample(make(model("sd15"), style), noise, areas, PROMPTS[1]) for make in (apply_deadiff, attach))
    assert distance(got, want) < 1e-4
    masked = apply_deadiff(model("sd15"), DEADiffSettings(style.image, mask=torch.ones(1, 8, 8)))
    with pytest.raises(RuntimeError, match="a mask over the whole picture cannot be used there"):
        sample(masked, noise, areas, PROMPTS[1])


class WatchedControl(ControlBase):
    """A ControlNet that changes nothing and remembers the text it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[Tensor] = []

    def get_control(self, x: Tensor, t: Tensor, cond: dict[str, Any], *args: Any) -> None:
        self.texts.append(cond["c_crossattn"].clone())


def test_a_controlnet_gets_the_text_alone(style: DEADiffSettings) -> None:
    control = WatchedControl()
    text, options = prompt("sd15", 1)[0]
    positive = [[text, {**options, "control": control, "control_apply_to_uncond": True}]]
    sample(apply_deadiff(model("sd15"), style), latent(1, *SIZE), positive, PROMPTS[1])
    assert all(torch.equal(seen[seen.shape[0] // 2 :], text) for seen in control.texts) and control.texts


@pytest.mark.parametrize("sampler", ["euler_ancestral", "heun", "dpm_2", "dpmpp_2m", "dpmpp_sde", "uni_pc"])
def test_samplers(style: DEADiffSettings, sampler: str) -> None:
    noise = latent(1, *SIZE)
    got, want = (
        sample(make(model("sd15"), style), noise, *PROMPTS, sampler=sampler, steps=4)
        for make in (apply_deadiff, attach)
    )
    assert distance(got, want) < 1e-3


@pytest.mark.parametrize("size", [(25, 33), (49, 65)])
def test_odd_sizes(style: DEADiffSettings, size: tuple[int, int]) -> None:
    noise = latent(1, 4, *size)
    masked = apply_deadiff(model("sd15"), DEADiffSettings(style.image, mask=torch.rand(1, 392, 520)))
    got = sample(masked, noise, *PROMPTS, steps=1)
    assert got.shape == noise.shape and got.isfinite().all()


def test_nothing_stays_alive_after_a_run_or_a_cancelled_one(style: DEADiffSettings) -> None:
    patcher = apply_deadiff(model("sd15"), DEADiffSettings(style.image, mask=torch.rand(1, 8, 8)))
    check_nothing_stays(partial(sample, patcher, latent(1, *SIZE), *PROMPTS))
