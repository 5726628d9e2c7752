"""DEADiff's attention on a small model with the true topology, through the host's sampler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from naive import labelled_layers
from naive_deadiff import attach, random_image
from refattention.core.deadiff.settings import DEADiffSettings
from refattention.core.deadiff.wrappers import apply_deadiff
from sampling import check_model_stays, distance, latent, model, prompt, sample
from torch import Tensor

SIZE = (4, 16, 12)
PROMPTS = prompt("sd15", 1), prompt("sd15", 2)


def style(patcher: Any = None, **settings: Any) -> DEADiffSettings:
    return DEADiffSettings(**{"image": random_image(patcher or model("sd15")), **settings})


def styled(**settings: Any) -> Any:
    return apply_deadiff(model("sd15"), style(**settings))


@pytest.mark.parametrize(
    "off",
    [
        {"strength": 0.0, "zero_tokens": False},
        {"mask": torch.zeros(1, 64, 64)},
        {"start_percent": 0.6, "end_percent": 0.65},
        {"image": {}},
    ],
    ids=["strength 0", "black mask", "range that never fires", "no layer"],
)
def test_off_is_bit_identical(off: dict[str, Any]) -> None:
    noise = latent(2, *SIZE)
    assert torch.equal(sample(styled(**off), noise, *PROMPTS), sample(model("sd15"), noise, *PROMPTS))


def test_the_connected_model_stays_bit_identical() -> None:
    check_model_stays(model("sd15"), lambda plain: apply_deadiff(plain, style()), *PROMPTS)


@pytest.mark.parametrize("zero_tokens", [True, False])
@pytest.mark.parametrize("strength", [0.5, 1.0, 1.7])
def test_equals_the_naive_attention(zero_tokens: bool, strength: float) -> None:
    noise, one = latent(2, *SIZE), style(strength=strength, zero_tokens=zero_tokens)
    got = sample(apply_deadiff(model("sd15"), one), noise, *PROMPTS)
    assert distance(got, sample(attach(model("sd15"), one), noise, *PROMPTS)) < 1e-4
    assert distance(got, sample(model("sd15"), noise, *PROMPTS)) > 1e-2


def test_weight_0_is_not_off_where_zero_tokens_take_part() -> None:
    noise, one = latent(1, *SIZE), style(strength=0.0)
    got = sample(apply_deadiff(model("sd15"), one), noise, *PROMPTS)
    assert distance(got, sample(attach(model("sd15"), one), noise, *PROMPTS)) < 1e-4
    assert distance(got, sample(model("sd15"), noise, *PROMPTS)) > 1e-3


def test_layers_without_image_attend_to_text_alone() -> None:
    image = random_image(model("sd15"))
    fine = {layer: pair for layer, pair in image.items() if layer[0][1] in (1, 2, 9, 10)}
    one, noise = style(image=fine), latent(1, *SIZE)
    got = sample(apply_deadiff(model("sd15"), one), noise, *PROMPTS)
    assert distance(got, sample(attach(model("sd15"), one), noise, *PROMPTS)) < 1e-4
    assert distance(got, sample(styled(), noise, *PROMPTS)) > 1e-3


def test_each_sample_may_have_its_own_image() -> None:
    one, noise = style(image=random_image(model("sd15"), samples=2)), latent(2, *SIZE)
    got = sample(apply_deadiff(model("sd15"), one), noise, *PROMPTS)
    assert distance(got, sample(attach(model("sd15"), one), noise, *PROMPTS)) < 1e-4
    with pytest.raises(ValueError, match="2 sets of image tokens do not fit 3 samples"):
        sample(apply_deadiff(model("sd15"), one), latent(3, *SIZE), *PROMPTS)


@pytest.mark.parametrize("lengths", [(154, 77), (77, 231), (77, 308), (100, 77)])
@pytest.mark.parametrize("zero_tokens", [True, False])
def test_texts_of_unequal_length(lengths: tuple[int, int], zero_tokens: bool) -> None:
    """The host repeats the shorter text, or runs two calls; neither may change how much the image weighs."""
    prompts = prompt("sd15", 1, tokens=lengths[0]), prompt("sd15", 2, tokens=lengths[1])
    one, noise = style(zero_tokens=zero_tokens), latent(2, *SIZE)
    got = sample(apply_deadiff(model("sd15"), one), noise, *prompts)
    want = sample(attach(model("sd15"), one, dict(enumerate(lengths))), noise, *prompts)
    assert distance(got, want) < 1e-4
    if zero_tokens and lengths != (100, 77):  # which the host does not pad
        padded = sample(attach(model("sd15"), one), noise, *prompts)
        assert distance(padded, want) > 1e-3


def projections_of_text(patcher: Any, run: Any) -> list[int]:
    """Tokens that go through each `to_k` and `to_v` of the cross-attentions during a run, call by call."""
    seen: list[int] = []
    handles = [
        projection.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
        for _, layer in labelled_layers(patcher)
        for projection in (layer.attn2.to_k, layer.attn2.to_v)
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def test_text_is_projected_once_in_a_run() -> None:
    patcher, noise = styled(), latent(1, *SIZE)
    layers = len(labelled_layers(patcher))
    seen = projections_of_text(patcher, lambda: sample(patcher, noise, *PROMPTS, steps=4))
    assert seen == [77] * 2 * layers + [0] * 2 * layers * 3
    again = projections_of_text(patcher, lambda: sample(patcher, noise, *PROMPTS, steps=1))
    assert again == [77] * 2 * layers


def test_text_that_changes_between_steps_is_projected_again() -> None:
    """As some nodes do through a wrapper."""
    step = 0

    def drift(executor: Any, x: Tensor, t: Tensor, concat: Any, text: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal step
        step += 1
        return executor(x, t, concat, text * (1 + 0.1 * step), *args, **kwargs)

    def drifting(patcher: Any) -> Any:
        nonlocal step
        step = 0
        patcher.add_wrapper_with_key("apply_model", "drift", drift)
        return patcher

    one, noise = style(), latent(1, *SIZE)
    want = sample(drifting(attach(model("sd15"), one)), noise, *PROMPTS)
    assert distance(sample(drifting(apply_deadiff(model("sd15"), one)), noise, *PROMPTS), want) < 1e-4


def test_range() -> None:
    """Within its part of the schedule only: the last steps are those of the plain model."""
    noise, seen = latent(1, *SIZE), {}

    def remember(name: str) -> Any:
        return lambda step, denoised, x, total: seen.setdefault(name, []).append(denoised.clone())

    sample(styled(end_percent=0.4), noise, *PROMPTS, steps=5, callback=remember("early"))
    sample(styled(), noise, *PROMPTS, steps=5, callback=remember("always"))
    sample(styled(start_percent=0.4), noise, *PROMPTS, steps=5, callback=remember("late"))
    sample(model("sd15"), noise, *PROMPTS, steps=5, callback=remember("never"))
    assert torch.equal(seen["early"][0], seen["always"][0]) and torch.equal(seen["late"][0], seen["never"][0])
    assert distance(seen["early"][-1], seen["always"][-1]) > 1e-4
    assert distance(seen["late"][-1], seen["never"][-1]) > 1e-4


def test_mask() -> None:
    noise = latent(2, *SIZE)
    everywhere, plain = sample(styled(), noise, *PROMPTS), sample(model("sd15"), noise, *PROMPTS)
    assert distance(sample(styled(mask=torch.ones(1, 40, 30)), noise, *PROMPTS), everywhere) < 1e-5
    each = sample(styled(mask=torch.stack([torch.zeros(9, 9), torch.ones(9, 9)])), noise, *PROMPTS)
    assert torch.equal(each[0], plain[0]) and distance(each[1], everywhere[1]) < 1e-5
    half = torch.zeros(1, 16, 12)
    half[..., :6] = 1
    change = (sample(styled(mask=half), noise, *PROMPTS, steps=1) - plain).abs()
    assert change.max() > 1e-3


def test_a_mask_leaves_the_other_tokens_bit_identical() -> None:
    last = (("output", 11), 0)
    image = {last: random_image(model("sd15"))[last]}
    half = torch.zeros(1, 128, 96)
    half[..., :48] = 1

    def last_attention(**settings: Any) -> Tensor:
        patcher, seen = styled(image=image, **settings), {}

        def watch(out: Tensor, options: dict[str, Any]) -> Tensor:
            seen[options["block"]] = out.clone()
            return out

        patcher.set_model_attn2_output_patch(watch)
        sample(patcher, latent(1, *SIZE), *PROMPTS, steps=1)
        return seen["output", 11].unflatten(1, SIZE[1:])

    change = last_attention(mask=half) - last_attention(strength=0.0, zero_tokens=False)
    assert change[:, :, :6].abs().amax(-1).min() > 0
    assert change[:, :, 6:].abs().max() == 0


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"strength": float("nan")}, ValueError, "strength must be a number of at least 0, but is nan"),
        ({"start_percent": 0.7, "end_percent": 0.2}, ValueError, r"start_percent \(0.7\) must not be larger"),
        ({"image": {(("output", 99), 0): (torch.zeros(1, 2, 8),) * 2}}, RuntimeError, "output.99, but there the model"),
        ({"image": {(("output", 3), 0): (torch.zeros(1, 2, 8),) * 2}}, RuntimeError, r"output.3, but there .* 64 wide"),
    ],
)
def test_a_style_that_does_not_fit(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        styled(**settings)


def halves() -> tuple[Tensor, Tensor]:
    """Masks of the upper and the lower half."""
    upper = torch.zeros(1, 32, 24)
    upper[:, :16] = 1
    return upper, 1 - upper


@pytest.mark.parametrize("zero_tokens", [True, False])
def test_two_styles_in_two_regions(zero_tokens: bool) -> None:
    """By two nodes in a row, in either order; each with its strength, and one with fewer tokens."""
    noise, (upper, lower) = latent(2, *SIZE), halves()
    one = {"image": random_image(model("sd15")), "strength": 0.8, "zero_tokens": zero_tokens}
    two = {"image": random_image(model("sd15"), tokens=5, seed=9), "zero_tokens": zero_tokens}
    want = sample(attach(model("sd15"), DEADiffSettings(**one), below=DEADiffSettings(**two)), noise, *PROMPTS)
    above, below = DEADiffSettings(mask=upper, **one), DEADiffSettings(mask=lower, **two)
    for order in ((above, below), (below, above)):
        patcher = model("sd15")
        for each in order:
            patcher = apply_deadiff(patcher, each)
        assert distance(sample(patcher, noise, *PROMPTS), want) < 1e-4
    assert distance(sample(apply_deadiff(model("sd15"), above), noise, *PROMPTS), want) > 1e-3


def test_regions_with_ranges_of_their_own() -> None:
    """Where one of the styles has ended the other goes on, and its place sees the text alone."""
    noise, (upper, lower) = latent(1, *SIZE), halves()
    other = random_image(model("sd15"), seed=9)

    def run(*settings: dict[str, Any]) -> list[Tensor]:
        patcher, seen = model("sd15"), []
        for each in settings:
            patcher = apply_deadiff(patcher, DEADiffSettings(**each))
        remember = lambda step, denoised, x, total: seen.append(denoised.clone())  # noqa: E731
        sample(patcher, noise, *PROMPTS, callback=remember)
        return seen

    first = {"image": random_image(model("sd15")), "mask": upper, "end_percent": 0.01}
    second = {"image": other, "mask": lower}
    both, alone, always = run(first, second), run(second), run({**first, "end_percent": 1.0}, second)
    assert torch.equal(both[0], always[0]) and distance(both[0], alone[0]) > 1e-4
    assert distance(both[-1], always[-1]) > 1e-4


def test_the_second_of_two_equal_styles_changes_nothing() -> None:
    """Masks that overlap share the place."""
    noise, whole = latent(1, *SIZE), torch.ones(1, 8, 8)
    once = styled(mask=whole)
    assert (
        distance(sample(apply_deadiff(once, style(mask=whole)), noise, *PROMPTS), sample(once, noise, *PROMPTS)) < 1e-5
    )


def test_other_families_and_a_second_style_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"DEADiff Style needs an SD1.5 model.*but got DemoSDXL"):
        apply_deadiff(model("sdxl"), DEADiffSettings({}))
    for first, second in ((None, None), (None, torch.ones(1, 8, 8)), (torch.ones(1, 8, 8), None)):
        with pytest.raises(ValueError, match="already went through a DEADiff Style node, and one of the two"):
            apply_deadiff(styled(mask=first), style(mask=second))


def test_masks_that_do_not_fit_the_batch() -> None:
    with pytest.raises(ValueError, match="mask holds 3 masks for a batch of 1"):
        sample(styled(mask=torch.ones(3, 8, 8)), latent(1, *SIZE), *PROMPTS)
