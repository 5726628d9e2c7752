"""P3S without training, on small models with the true topology, through the host's sampler."""

from __future__ import annotations

from functools import partial
from typing import Any

import oracle
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_tomesd import TomePatchModel
from naive import HiddenStates, labelled_layers
from refattention.core.p3s.run import time_of
from refattention.core.p3s.settings import P3SSettings, Schedule
from refattention.core.p3s.wrappers import apply_p3s
from refattention.core.patches.reference_pass import Reference
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from sampling import (
    FAMILIES,
    check_halves,
    check_model_stays,
    check_nothing_stays,
    distance,
    guide_all,
    latent,
    model,
    prompt,
    sample,
)

SIZE = (4, 16, 12)
PROMPTS = prompt("sd15", 1), prompt("sd15", 2)


def injected(patcher: Any, **settings: Any) -> Any:
    reference = Reference(settings.pop("samples", latent(1, 4, 9, 11, seed=3)), None, 5)
    return apply_p3s(patcher, P3SSettings(reference, **settings))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "off",
    [{"strength": 0.0}, {"schedule": Schedule("off")}, {"start_percent": 0.6, "end_percent": 0.65}],
    ids=["strength 0", "schedule off", "range that never fires"],
)
def test_off_is_bit_identical(family: str, off: dict[str, Any]) -> None:
    plain, noise = model(family), latent(2, *SIZE)
    prompts = prompt(family, 1), prompt(family, 2)
    before = sample(plain, noise, *prompts)
    assert torch.equal(sample(injected(plain, **off), noise, *prompts), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_connected_model_stays_bit_identical(family: str) -> None:
    check_model_stays(model(family), injected, prompt(family, 1), prompt(family, 2))


LEFT = torch.zeros(1, 64, 48)
LEFT[..., :24] = 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("size", "settings"),
    [
        (SIZE, {"value_strength": 0.2}),
        (SIZE, {"value_strength": 0.2, "subject_mask": LEFT, "strength": 1.5}),
        ((4, 9, 11), {"value_strength": 0.0}),
    ],
    ids=["same size", "mask", "other size"],
)
def test_every_self_attention_follows_the_equation(
    family: str, size: tuple[int, int, int], settings: dict[str, Any]
) -> None:
    """Hidden states are captured outside the pack; Eq. 7 and 8 are computed from them in float64.

    At the first step t / T is 1, so that eps_t is 0.7 times the strength.
    """
    patcher, states = model(family), HiddenStates()
    states.attach(patcher)
    sample(injected(patcher, samples=latent(1, *size, seed=3), **settings), latent(2, *SIZE), *(
        prompt(family, seed) for seed in (1, 2)
    ), steps=1)  # fmt: skip

    layers = [layer.attn1 for _, layer in labelled_layers(patcher)]
    references, own = states.inputs[: len(layers)], states.inputs[len(layers) :]
    epsilon, value_strength = 0.7 * settings.get("strength", 1.0), settings["value_strength"]
    assert [len(references[0]), len(own[0]), len(own)] == [2, 4, len(layers)]
    for layer, f, z, out in zip(layers, references, own, states.outputs[-len(layers) :], strict=True):
        f = f.double().repeat_interleave(2, 0)  # the halves' references, for two pictures each
        keep = torch.ones(f.shape[1], dtype=torch.bool)
        if "subject_mask" in settings:
            columns = round((f.shape[1] * 12 / 16) ** 0.5)
            keep = (torch.arange(columns) + 0.5 <= columns / 2).repeat(f.shape[1] // columns)
        z = z.double()
        # Where lambda is 0 the grids need not agree.
        in_place = epsilon * f * keep[:, None] if f.shape == z.shape else 0
        keys = torch.cat([z, epsilon * f[:, keep]], 1)
        values = torch.cat([z + value_strength * in_place, epsilon * f[:, keep]], 1)
        w_q, w_k, w_v = (one.weight.detach().double().T for one in (layer.to_q, layer.to_k, layer.to_v))
        want = oracle.batched(z @ w_q, keys @ w_k, values @ w_v, layer.heads)
        with torch.inference_mode():
            assert (out - layer.to_out(want.float())).abs().max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_time_is_the_timestep_as_a_share(family: str) -> None:
    sampling = model(family).get_model_object("model_sampling")
    for t in (0, 1, 250, 500, 998, 999):
        assert time_of(sampling, sampling.sigmas[t].item()) == pytest.approx(t / 999, abs=1e-5)
    assert time_of(sampling, sampling.sigmas[999].item()) == 1
    assert time_of(sampling, 0.0) == 0


def forward_passes(patcher: Any) -> list[int]:
    """Records the batch of every forward pass."""
    passes: list[int] = []
    patcher.add_wrapper_with_key(
        WrappersMP.APPLY_MODEL, "refattention.watch", lambda ex, x, *a, **k: passes.append(len(x)) or ex(x, *a, **k)
    )
    return passes


def test_the_reference_is_read_once_a_step_for_both_halves_and_not_at_weight_0() -> None:
    patcher = injected(model("sd15"), schedule=Schedule("decreasing"))
    passes = forward_passes(patcher)
    sample(patcher, latent(3, *SIZE), *PROMPTS)
    assert passes == [6, 2, 6, 2, 6]  # weight 0 at the first step


def test_halves_come_in_any_order_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    run = partial(sample, noise=latent(2, *SIZE), positive=PROMPTS[0], negative=PROMPTS[1])
    check_halves(monkeypatch, partial(model, "sd15"), injected, run)
    patcher = injected(model("sd15"))
    passes = forward_passes(patcher)
    run(patcher)
    assert passes == [1, 1, 2, 2] * 3


def test_pictures_of_a_batch_do_not_mix() -> None:
    noise = latent(2, *SIZE)
    both = sample(injected(model("sd15")), noise, *PROMPTS)
    for row in range(2):
        assert distance(sample(injected(model("sd15")), noise[row : row + 1], *PROMPTS), both[row : row + 1]) < 1e-4


@pytest.mark.parametrize(
    "patch",
    [
        lambda m: apply_refdrop(m, RefDropSettings(0.4, guide_all(m), Reference(latent(1, 4, 7, 9, seed=4), None, 6))),
        lambda m: apply_refdrop(m, RefDropSettings(0.4, guide_all(m), mask=torch.eye(20)[None])),
        lambda m: apply_refdrop(m, RefDropSettings(1.0, guide_all(m), concat=True)),
    ],
    ids=["RefDrop", "RefDrop in the batch", "RefDrop concat"],
)
def test_with_refdrop(patch: Any) -> None:
    noise = latent(2, 4, 16, 16)
    alone, ours = sample(patch(model("sd15")), noise, *PROMPTS), sample(injected(model("sd15")), noise, *PROMPTS)
    both, other_order = (
        sample(injected(patch(model("sd15"))), noise, *PROMPTS),
        sample(patch(injected(model("sd15"))), noise, *PROMPTS),
    )
    assert both.isfinite().all()
    assert distance(both, other_order) < 1e-4
    assert distance(both, alone) > 1e-3
    assert distance(both, ours) > 1e-4


def test_references_are_read_without_each_other() -> None:
    """RefDrop's reference and ours, in whichever order the nodes come: one pass each, and one for the pictures."""
    for order in (1, -1):
        patcher = model("sd15")
        nodes = [
            injected,
            lambda m: apply_refdrop(m, RefDropSettings(0.4, guide_all(m), Reference(latent(1, 4, 7, 9), None, 6))),
        ]
        for node in nodes[::order]:
            patcher = node(patcher)
        passes = forward_passes(patcher)
        sample(patcher, latent(3, *SIZE), *PROMPTS, steps=1)
        assert passes == [2, 2, 6]


def test_tiled_queries_are_refused() -> None:
    patcher = HyperTile.execute(injected(model("sd15")), 32, 2, 0, False)[0]
    with pytest.raises(RuntimeError, match=r"P3S Inject needs the 16 x 16 tokens of block .* in one piece"):
        sample(patcher, latent(1, 4, 16, 16), *PROMPTS)


def test_merged_queries_are_refused_where_there_is_a_region() -> None:
    """Nothing tells any more which of them are inside."""
    noise, merging = latent(1, 4, 16, 16), TomePatchModel.execute
    assert sample(merging(injected(model("sd15")), 0.5)[0], noise, *PROMPTS, steps=1).isfinite().all()
    with pytest.raises(RuntimeError, match=r"P3S Inject needs the 16 x 16 tokens of block .*token merging"):
        sample(merging(injected(model("sd15"), mask=LEFT), 0.5)[0], noise, *PROMPTS)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "heun", "dpmpp_2m", "dpmpp_sde"])
def test_samplers(sampler: str) -> None:
    noise = latent(1, 4, 25, 33)
    run = {"sampler": sampler, "steps": 2}
    first = sample(injected(model("sd15")), noise, *PROMPTS, **run)
    assert first.isfinite().all()
    assert torch.equal(first, sample(injected(model("sd15")), noise, *PROMPTS, **run))


def test_prompts_limited_to_an_area() -> None:
    text, options = prompt("sd15", 8)[0]
    positive = [*PROMPTS[0], [text, {**options, "area": (8, 12, 4, 0), "strength": 1.0}]]
    got = sample(injected(model("sd15")), latent(1, *SIZE), positive, PROMPTS[1])
    assert distance(got, sample(model("sd15"), latent(1, *SIZE), positive, PROMPTS[1])) > 1e-2


def test_nothing_stays_alive_after_a_run_or_a_cancelled_one() -> None:
    check_nothing_stays(partial(sample, injected(model("sd15"), subject_mask=LEFT), latent(1, *SIZE), *PROMPTS))
