"""RefDrop together with everything else a model or a prompt may carry, and with the ways the host evaluates them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from comfy.controlnet import ControlBase
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from naive import HiddenStates, NaiveRefDrop
from refattention.core.patches.reference_pass import Reference
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from sampling import check_halves, check_nothing_stays, distance, guide_all, latent, model, prompt, sample
from torch import Tensor

SIZE = (4, 16, 12)
PROMPTS = prompt("sd15", 1), prompt("sd15", 2)


def guided(patcher: Any, strength: float = 0.4, **settings: Any) -> Any:
    settings.setdefault("reference", Reference(latent(1, 4, 9, 11, seed=3), settings.pop("positive", None), 5))
    return apply_refdrop(patcher, RefDropSettings(strength, settings.pop("blocks", guide_all(patcher)), **settings))


def naive(patcher: Any, strength: float = 0.4) -> Any:
    one = latent(1, 4, 9, 11, seed=3)
    noise = torch.randn(one.shape, generator=torch.Generator("cpu").manual_seed(5))
    NaiveRefDrop([(strength, patcher.model.process_latent_in(one), noise, None)]).attach(patcher)
    return patcher


def test_pag_on_the_only_guided_block_is_no_error() -> None:
    pag = PerturbedAttentionGuidance.execute(guided(model("sd15"), blocks=frozenset({("middle", 0)})), 3.0)[0]
    assert sample(pag, latent(1, *SIZE), *PROMPTS).isfinite().all()


def test_no_effect_is_an_error() -> None:
    patcher = guided(model("sd15"), blocks=frozenset({("middle", 0)}))
    patcher.set_model_attn1_replace(lambda q, k, v, extra_options: v, "middle", 0)
    with pytest.raises(RuntimeError, match="RefDrop had no effect: another patch"):
        sample(patcher, latent(1, *SIZE), *PROMPTS)


def test_two_nodes_in_a_row_do_not_depend_on_their_order() -> None:
    noise = latent(1, *SIZE)
    other = Reference(latent(1, 4, 12, 10, seed=9), None, 6)
    one = sample(guided(guided(model("sd15"), 0.3), -0.2, reference=other), noise, *PROMPTS)
    two = sample(guided(guided(model("sd15"), -0.2, reference=other), 0.3), noise, *PROMPTS)
    # Sums in another order round differently, and the sampler carries that on: 1.1e-5 was seen on one thread.
    assert distance(one, two) < 3e-5


def test_a_batch_of_references_equals_nodes_in_a_row() -> None:
    noise, samples = latent(1, *SIZE), latent(2, 4, 9, 11, seed=3)
    reference_noise = torch.randn(samples.shape, generator=torch.Generator("cpu").manual_seed(5))
    batch = sample(guided(model("sd15"), 0.3, reference=Reference(samples, None, 5)), noise, *PROMPTS)
    patcher = model("sd15")
    outside = [
        (0.3, patcher.model.process_latent_in(samples[i : i + 1]), reference_noise[i : i + 1], None) for i in (0, 1)
    ]
    NaiveRefDrop(outside).attach(patcher)
    assert distance(batch, sample(patcher, noise, *PROMPTS)) < 1e-4


@pytest.mark.parametrize("settings", [{}, {"reference": None, "batch_references": 1}], ids=["latent", "batch"])
def test_halves_come_in_any_order_and_alone(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run = partial(sample, noise=latent(2, *SIZE), positive=PROMPTS[0], negative=PROMPTS[1])
    check_halves(monkeypatch, partial(model, "sd15"), partial(guided, **settings), run)


def test_prompts_of_unequal_length_run_in_two_calls() -> None:
    prompts = prompt("sd15", 1, tokens=100), prompt("sd15", 2)
    noise = latent(1, *SIZE)
    assert (
        distance(sample(guided(model("sd15")), noise, *prompts), sample(naive(model("sd15")), noise, *prompts)) < 1e-4
    )


def test_without_guidance_scale_there_is_one_half() -> None:
    noise = latent(1, *SIZE)
    got, want = (sample(make(model("sd15")), noise, *PROMPTS, cfg=1.0) for make in (guided, naive))
    assert distance(got, want) < 1e-4


def test_combined_prompts_follow_each_their_own_reference() -> None:
    positive = [*prompt("sd15", 1), *prompt("sd15", 8)]
    noise = latent(1, *SIZE)
    got = sample(guided(model("sd15")), noise, positive, PROMPTS[1])
    assert distance(got, sample(naive(model("sd15")), noise, positive, PROMPTS[1])) < 1e-4


def test_an_sdxl_reference_is_told_its_own_size() -> None:
    prompts = prompt("sdxl", 1), prompt("sdxl", 2)

    def sizes_told(patcher: Any, noise: Tensor) -> dict[tuple[int, ...], Tensor]:
        """Size of the latent -> the vector that SDXL gets text and picture size in."""
        told: dict[tuple[int, ...], Tensor] = {}

        def watch(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            told[tuple(x.shape[-2:])] = kwargs["y"]
            return executor(x, *args, **kwargs)

        patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "refattention.watch", watch)
        sample(patcher, noise, *prompts, steps=1)
        return told

    told = sizes_told(guided(model("sdxl")), latent(1, *SIZE))
    alone = sizes_told(model("sdxl"), latent(1, 4, 9, 11))
    assert torch.equal(told[9, 11], alone[9, 11])
    assert not torch.equal(told[9, 11], told[SIZE[1:]])


def test_a_reference_prompt_that_is_switched_off_is_an_error() -> None:
    text, options = prompt("sd15", 3)[0]
    late = [[text, {**options, "start_percent": 0.5, "end_percent": 1.0}]]
    with pytest.raises(RuntimeError, match="the prompt of the reference is switched off at a step"):
        sample(guided(model("sd15"), positive=late), latent(1, *SIZE), *PROMPTS)


def area_prompt() -> list[Any]:
    text, options = prompt("sd15", 8)[0]
    return [*prompt("sd15", 1), [text, {**options, "area": (8, 12, 4, 0), "strength": 1.0}]]


def test_area_prompts_work_and_refuse_a_mask() -> None:
    noise = latent(1, *SIZE)
    with_area = sample(guided(model("sd15")), noise, area_prompt(), PROMPTS[1])
    assert distance(with_area, sample(model("sd15"), noise, area_prompt(), PROMPTS[1])) > 1e-2
    with pytest.raises(RuntimeError, match="a mask over the whole picture cannot be used there"):
        sample(guided(model("sd15"), mask=torch.ones(1, 8, 8)), noise, area_prompt(), PROMPTS[1])


def test_a_default_prompt_reads_the_reference_with_its_own_text() -> None:
    """It serves the places that no other prompt is for, as a prompt with a mask of these places does."""
    (first, _), (second, _) = PROMPTS[0][0], prompt("sd15", 8)[0]
    mask = torch.zeros(1, *SIZE[1:])
    mask[..., :6] = 1
    noise = latent(1, *SIZE)
    pictures = [
        sample(guided(model("sd15")), noise, [[first, {"mask": mask}], [second, rest]], PROMPTS[1])
        for rest in ({"default": True}, {"mask": 1 - mask})
    ]
    assert distance(*pictures) < 1e-5


def test_where_in_the_picture_the_references_own_prompt_is_for_does_not_matter() -> None:
    """The reference is another picture, and is read whole."""
    (text, options), noise, mask = prompt("sd15", 3)[0], latent(1, *SIZE), torch.zeros(1, *SIZE[1:])
    mask[..., :6] = 1
    want = sample(guided(model("sd15"), positive=prompt("sd15", 3)), noise, *PROMPTS)
    for place in ({"area": (4, 5, 2, 3), "strength": 0.5}, {"mask": mask, "set_area_to_bounds": True}):
        limited = guided(model("sd15"), positive=[[text, {**options, **place}]])
        assert torch.equal(sample(limited, noise, *PROMPTS), want)


class WatchedControl(ControlBase):
    """A ControlNet that changes nothing and remembers the sizes it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[tuple[int, int]] = set()
        self.cleaned = 0

    def get_control(self, x_noisy: Tensor, *args: Any) -> None:
        self.sizes.add(tuple(x_noisy.shape[-2:]))
        return None

    def cleanup(self) -> None:
        self.cleaned += 1
        super().cleanup()


def controlled(seed: int) -> tuple[list[Any], WatchedControl]:
    control = WatchedControl()
    text, options = prompt("sd15", seed)[0]
    return [[text, {**options, "control": control, "control_apply_to_uncond": True}]], control


def test_a_controlnet_acts_on_the_picture_whose_prompt_carries_it() -> None:
    positive, control = controlled(1)
    own, own_control = controlled(3)
    sample(guided(model("sd15"), positive=own), latent(1, *SIZE), positive, PROMPTS[1])
    assert control.sizes == {SIZE[1:]}
    assert own_control.sizes == {(9, 11)}
    assert control.cleaned and own_control.cleaned


@pytest.mark.parametrize("sampler", ["euler_ancestral", "heun", "dpm_2", "dpmpp_2m", "dpmpp_sde", "lms", "uni_pc"])
def test_samplers(sampler: str) -> None:
    """Evaluations between the steps, repeated noise levels and the sampler's own random numbers."""
    noise = latent(2, *SIZE)
    run = {"sampler": sampler, "steps": 4}
    got, want = (sample(make(model("sd15")), noise, *PROMPTS, **run) for make in (guided, naive))
    assert distance(got, want) < 1e-3
    assert torch.equal(got, sample(guided(model("sd15")), noise, *PROMPTS, **run))


@pytest.mark.parametrize(
    ("size", "mode"),
    [
        ((49, 65), {}),
        ((25, 33), {"concat": True}),
        ((25, 33), {"mask": torch.rand(1, 392, 520)}),
        ((25, 33), {"reference_mask": torch.eye(30)[None]}),
    ],
    ids=["520x392", "concat", "mask", "reference mask"],
)
def test_odd_sizes(size: tuple[int, int], mode: dict[str, Any]) -> None:
    reference = Reference(latent(1, 4, 35, 21, seed=3), None, 5)
    noise = latent(2, 4, *size)
    got = sample(guided(model("sd15"), reference=reference, **mode), noise, *PROMPTS, steps=1)
    assert got.shape == noise.shape and got.isfinite().all()
    assert distance(got, sample(model("sd15"), noise, *PROMPTS, steps=1)) > 1e-3


def test_a_region_mask_leaves_the_other_tokens_bit_identical() -> None:
    mask = torch.zeros(1, 128, 96)
    mask[:, :, :48] = 1
    last = frozenset({("output", 11)})

    def last_attention(make: Any) -> Tensor:
        patcher, states = model("sd15"), HiddenStates()
        states.attach(patcher)
        sample(make(patcher), latent(1, *SIZE), *PROMPTS, steps=1)
        return states.outputs[-1].unflatten(1, SIZE[1:])

    change = last_attention(lambda m: guided(m, mask=mask, blocks=last)) - last_attention(lambda m: m)
    assert change[:, :, :6].abs().amax(-1).min() > 0
    assert change[:, :, 6:].abs().max() == 0


def test_each_picture_may_have_its_own_mask() -> None:
    mask = torch.stack([torch.zeros(20, 20), torch.ones(20, 20)])
    noise = latent(2, *SIZE)
    got, plain = sample(guided(model("sd15"), mask=mask), noise, *PROMPTS), sample(model("sd15"), noise, *PROMPTS)
    everywhere = sample(guided(model("sd15")), noise, *PROMPTS)
    assert torch.equal(got[0], plain[0])
    assert distance(got[1], everywhere[1]) < 1e-5


@pytest.mark.parametrize("mask", [None, torch.rand(1, 8, 8)], ids=["everywhere", "mask"])
def test_nothing_stays_alive_after_a_run_or_a_cancelled_one(mask: Tensor | None) -> None:
    check_nothing_stays(partial(sample, guided(model("sd15"), mask=mask), latent(1, *SIZE), *PROMPTS))
