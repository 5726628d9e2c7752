"""Leffa on small models, through its nodes and the host's sampler. The recorded runs are in tests/golden."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import comfy.sample
import pytest
import torch
from comfy_extras.nodes_hypertile import HyperTile
from refattention.core.leffa.equal_halves import share_equal_halves
from refattention.core.leffa.reference import KEY
from refattention.core.leffa.run import LeffaRun
from refattention.core.leffa.settings import LeffaSettings
from refattention.core.leffa.unet import transformer_layers
from refattention.nodes.leffa import EVERY_N, ONCE, LeffaPoseTransfer
from sampling import check_halves, check_nothing_stays, distance
from torch import Tensor
from tryon import KINDS, AveragingVAE, half_mask, model, parts, picture, sample, try_on


class ReferencePasses:
    """Counts what the reference U-Net is asked for: (timestep, batch)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: str = "sd15") -> None:
        self.calls: list[tuple[float, int]] = []
        reference = parts(kind).reference.model
        original = reference.features

        def features(latents: Tensor, timestep: Tensor) -> list[Tensor]:
            self.calls.append((timestep.item(), len(latents)))
            return original(latents, timestep)

        monkeypatch.setattr(reference, "features", features)


def naive_noise(kind: str, x: Tensor, timestep: float, garment: Tensor) -> Tensor:
    """The generative U-Net with every token as a query, for one sample: slow, and plain to read."""
    generative, reference = (each.model.diffusion_model for each in (parts(kind).generative, parts(kind).reference))
    features = iter(reference.features(garment, torch.tensor([timestep])))

    def concatenate(n: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, ...]:
        both = torch.cat([n, next(features)], dim=1)
        return n, both, both

    options = {"patches": {"attn1_patch": [concatenate]}}
    return generative(x, torch.tensor([timestep]), transformer_options=options)


@pytest.mark.parametrize("kind", KINDS)
def test_each_evaluation_equals_the_plain_one(kind: str) -> None:
    """Every sample of a batch of persons and garments alone, each half alone, guidance by hand."""
    outputs = try_on(model(kind), image=picture(2, 64, 48), garment_image=picture(2, 48, 40, seed=2))
    patcher, positive, _, _ = outputs
    seen = []

    def watch(args: dict[str, Any]) -> Tensor:
        seen.append(args)
        return args["denoised"]

    patcher.set_model_sampler_post_cfg_function(watch)
    sample(outputs, steps=2)
    assert len(seen) == 2
    concat, garments = positive[0][1]["noise_concat"], positive[0][1]["leffa_references"]
    for args in seen:
        sigma = args["sigma"][0]
        timestep = patcher.model.model_sampling.timestep(sigma).item()
        for row, garment in enumerate(garments):
            x = torch.cat([args["input"][row] / (1 + sigma**2) ** 0.5, concat[row]])[None]
            with torch.inference_mode():
                cond = naive_noise(kind, x, timestep, garment.latent[None])
                uncond = naive_noise(kind, x, timestep, torch.zeros_like(garment.latent)[None])
            guided = uncond + 2.5 * (cond - uncond)
            used = guided * (2.5 * cond.std() / guided.std() - 1.5)
            assert distance((args["input"][row] - args["denoised"][row]) / sigma, used[0]) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_connected_model_stays_as_it_is(kind: str) -> None:
    plain = model(kind)
    options, weights = str(plain.model_options), {k: v.clone() for k, v in plain.model_state_dict().items()}
    before = sample(try_on(plain))
    assert torch.equal(sample(try_on(plain)), before)
    assert str(plain.model_options) == options and not plain.wrappers
    assert all(torch.equal(value, weights[name]) for name, value in plain.model_state_dict().items())


def test_a_further_node_takes_the_place_of_the_one_before() -> None:
    """A garment after the other: the second node is given the model of the first."""
    once = try_on(model())
    assert torch.equal(sample(try_on(once[0])), sample(once))
    plain = sample(try_on(model(), rescale_guidance=False))
    assert torch.equal(sample(try_on(once[0], rescale_guidance=False)), plain)


def test_seeds_reproduce_and_differ() -> None:
    outputs = try_on(model())
    assert torch.equal(sample(outputs), sample(outputs))
    assert distance(sample(outputs), sample(outputs, seed=8)) > 0.1


def test_other_garment_other_mask_other_pose_other_person() -> None:
    base = sample(try_on(model()))
    for change in (
        {"garment_image": picture(1, 48, 48, seed=9)},
        {"mask": 1 - half_mask(64, 48)},
        {"densepose": picture(1, 64, 48, seed=9)},
        {"image": picture(1, 64, 48, seed=9)},
        {"rescale_guidance": False},
        {"reference": ONCE},
    ):
        assert distance(sample(try_on(model(), **change)), base) > 1e-4, change


def test_how_often_the_reference_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = ReferencePasses(monkeypatch)
    timesteps = [751.0, 501.0, 251.0, 1.0]
    sample(try_on(model()))
    assert passes.calls == [(t, 1) for t in timesteps for _ in range(2)]  # the garment, and zeros
    for interval, seen_at in ((1, timesteps), (2, [501, 1]), (3, [501, 1]), (4, [251]), (100, [251])):
        passes.calls.clear()
        sample(try_on(model(), reference=EVERY_N, reference_interval=interval))
        assert [t for t, _ in passes.calls[::2]] == seen_at, interval
    passes.calls.clear()
    sample(try_on(model(), reference=ONCE))
    assert passes.calls == [(251.0, 1)] * 2
    passes.calls.clear()
    sample(try_on(model()), cfg=1.0)
    assert passes.calls == [(t, 1) for t in timesteps]


def test_every_1_steps_is_every_step_and_every_all_steps_is_once() -> None:
    every = sample(try_on(model()))
    assert torch.equal(sample(try_on(model(), reference=EVERY_N, reference_interval=1)), every)
    once = sample(try_on(model(), reference=ONCE))
    assert torch.equal(sample(try_on(model(), reference=EVERY_N, reference_interval=4)), once)


def test_the_zeros_are_kept_for_the_next_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = ReferencePasses(monkeypatch)
    without = sample(try_on(model()))
    patcher = model(cache_bytes=1 << 30)
    first = sample(try_on(patcher))
    passes.calls.clear()
    second = sample(try_on(patcher))
    assert [batch for _, batch in passes.calls] == [1, 1, 1, 1]
    assert torch.equal(first, without) and torch.equal(second, without)
    passes.calls.clear()
    sample(try_on(patcher, garment_image=picture(1, 40, 48)))
    assert [batch for _, batch in passes.calls] == [1] * 8


def test_the_cache_keeps_to_its_budget() -> None:
    one_step = sum(f.numel() for f in parts().reference.model.features(torch.zeros(1, 4, 6, 6), torch.ones(1))) * 4
    patcher = model(cache_bytes=int(2.5 * one_step))
    outputs = try_on(patcher)
    sample(outputs)
    cache = patcher.get_attachment(KEY)
    assert len(cache._features) == 2 and cache._bytes == 2 * one_step


def test_equal_garments_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = ReferencePasses(monkeypatch)
    sample(try_on(model(), image=picture(3, 64, 48)), steps=2)
    assert [batch for _, batch in passes.calls] == [1] * 4  # garment and zeros, twice


@pytest.mark.parametrize("persons", [1, 2])
def test_a_batch_equals_its_samples(persons: int) -> None:
    images, garments = picture(persons, 64, 48, seed=1), picture(2, 48, 48, seed=2)
    got = try_on(model(), image=images, garment_image=garments)
    assert got[3]["samples"].shape == (2, 4, 8, 6)
    noise = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(3))

    def run(outputs: Any, rows: slice) -> Tensor:
        patcher, positive, negative, _ = outputs
        with torch.inference_mode():
            return comfy.sample.sample(
                patcher, noise[rows], 3, 2.5, "euler", "ddim_uniform", positive, negative,
                torch.zeros_like(noise[rows]), disable_pbar=True, seed=1,
            )  # fmt: skip

    both = run(got, slice(None))
    for row in range(2):
        image = images[row % persons][None]
        alone = run(try_on(model(), image=image, garment_image=garments[row][None]), slice(row, row + 1))
        assert distance(both[row], alone[0]) < 1e-4


def test_halves_come_in_any_order_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    check_halves(monkeypatch, model, try_on, sample)


def test_equal_halves_are_computed_once_and_unequal_ones_are_not() -> None:
    unet = parts().generative.model.diffusion_model
    rows = []
    hook = unet.input_blocks[0][0].register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        x = torch.randn(2, 12, 8, 8)
        for halves in (torch.cat([x[:1], x[:1]]), x):
            options = share_equal_halves({"cond_or_uncond": [1, 0]})
            with torch.inference_mode():
                got = unet(halves, torch.tensor([5.0, 5.0]), transformer_options=options)
                want = unet(halves, torch.tensor([5.0, 5.0]), transformer_options={})
            assert distance(got, want) < 1e-5
    finally:
        hook.remove()
    assert rows == [1, 2, 2, 2]


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "heun", "dpm_2", "dpmpp_2m_sde", "uni_pc", "lcm"])
def test_samplers(sampler: str) -> None:
    outputs = try_on(model())
    first = sample(outputs, sampler=sampler, steps=5)
    assert first.isfinite().all()
    assert torch.equal(sample(outputs, sampler=sampler, steps=5), first)
    assert sample(try_on(model(), reference=EVERY_N, reference_interval=2), sampler=sampler, steps=5).isfinite().all()


@pytest.mark.parametrize("size", [(61, 47), (72, 104), (200, 8)])
def test_any_size(size: tuple[int, int]) -> None:
    outputs = try_on(model("sdxl"), image=picture(1, *size))
    assert outputs[3]["samples"].shape == (1, 4, -(-size[0] // 8), -(-size[1] // 8))
    assert sample(outputs, steps=2).isfinite().all()


def test_pose_transfer() -> None:
    def run(**change: Any) -> Tensor:
        inputs = {"reference_image": picture(1, 48, 48), "densepose": picture(2, 64, 48, seed=1), **change}
        rest = {"reference": ONCE, "reference_interval": 1, "rescale_guidance": True}
        return sample(tuple(LeffaPoseTransfer.execute(model("sdxl"), AveragingVAE(), **inputs, **rest)), steps=2)

    base = run()
    assert base.shape == (2, 4, 8, 6)
    assert distance(run(densepose=picture(2, 64, 48, seed=2)), base) > 1e-4
    assert distance(run(reference_image=picture(1, 48, 48, seed=9)), base) > 1e-4


def test_the_start_is_unit_noise_at_any_first_timestep() -> None:
    starts = []

    def watch(args: dict[str, Any]) -> Tensor:
        starts.append(args["input"] / (1 + args["sigma"].reshape(-1, 1, 1, 1) ** 2) ** 0.5)
        return args["denoised"]

    outputs = try_on(model(), image=picture(1, 256, 256))
    outputs[0].set_model_sampler_post_cfg_function(watch)
    sample(outputs, steps=4)
    noise = comfy.sample.prepare_noise(outputs[3]["samples"], 7)
    assert (starts[0] - noise).abs().max() < 1e-5


@pytest.mark.parametrize("reference", [ONCE, "every step"])
def test_nothing_stays_alive_after_a_run_or_a_cancelled_one(reference: str) -> None:
    check_nothing_stays(partial(sample, try_on(model(), reference=reference)))


def test_a_lora_on_the_generative_unet_acts() -> None:
    plain = model()
    keys = [key for key in plain.model_state_dict() if "attn1.to_v.weight" in key]
    patched = plain.clone()
    assert len(patched.add_patches({key: (torch.full_like(plain.model_state_dict()[key], 0.01),) for key in keys}))
    assert len(keys) == len(transformer_layers(plain.model.diffusion_model))
    assert distance(sample(try_on(patched)), sample(try_on(plain))) > 1e-3


def test_wrong_wiring_is_told() -> None:
    loader_model = model()
    patcher, positive, negative, latent = try_on(loader_model)
    with pytest.raises(RuntimeError, match="The reference of Leffa was not looked at"):
        sample((loader_model, positive, negative, latent))
    text = [[torch.zeros(1, 77, 768), {}]]
    with pytest.raises(RuntimeError, match="a conditioning without reference reached the model"):
        sample((patcher, positive, text, latent))
    with pytest.raises(RuntimeError, match="needs 12 input channels, but only 4 arrived"):
        sample((loader_model, text, text, latent))
    with pytest.raises(
        ValueError, match=r"batch x height x width = 1 x 8 x 8, but the conditioning of Leffa 1 x 8 x 6"
    ):
        sample((patcher, positive, negative, {"samples": torch.zeros(1, 4, 8, 8)}))
    tiled = HyperTile.execute(patcher, 32, 2, 0, False)[0]
    with pytest.raises(RuntimeError, match="another patch changed the batch"):
        sample((tiled, *try_on(loader_model, image=picture(1, 256, 256))[1:]))


def run_of(interval: int, schedule: Tensor) -> LeffaRun:
    guider = SimpleNamespace(conds={}, model_patcher=model())
    return LeffaRun(LeffaSettings(interval), guider, (1, 4, 8, 8), schedule)


def test_reference_step_is_the_middle_of_its_group() -> None:
    schedule = torch.tensor([8.0, 4, 2, 1, 0.5, 0])
    for interval, want in ((2, [4, 4, 1, 1, 0.5]), (3, [4, 4, 4, 0.5, 0.5]), (0, [2] * 5), (1, [8, 4, 2, 1, 0.5])):
        run = run_of(interval, schedule)
        assert [run._reference_level(level) for level in schedule[:-1].tolist()] == want
    assert run_of(2, schedule)._reference_level(3.0) == 4
