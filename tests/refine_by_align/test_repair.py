"""Alignment maps on small models with the true topology, against passes and attention written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import numpy as np
import oracle
import pytest
import torch
from bootstrap import ROOT
from boxes import overlap
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from naive import HiddenStates, labelled_layers
from PIL import Image
from refattention.core.patches.blocks import Layer, select_layers
from refattention.core.patches.reference_pass import Reference
from refattention.core.patches.single_evaluation import evaluate_once
from refattention.core.patches.unet import self_attention_layers
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from refattention.core.refine_by_align.kernel import group_of_mask, groups_of_points
from refattention.core.refine_by_align.match import Box, Finding, find
from refattention.core.refine_by_align.observe import Look, attention_maps
from refattention_demo.loading import load
from sampling import FAMILIES, distance, guide_all, latent, model, prompt, sample
from torch import Tensor
from torch.nn import functional as F

PICTURE, REFERENCE = latent(1, 4, 16, 12, seed=1), latent(1, 4, 8, 20, seed=2)
MASK = torch.zeros(128, 96)
MASK[40:100, 20:60] = 1
NODE = "Node"
CELL = 8  # pixels of a latent


def layers(family: str, names: str = "") -> frozenset[Layer]:
    return select_layers(names, list(self_attention_layers(model(family).model.diffusion_model)), family)


def of_mask(grid: tuple[int, int]) -> Tensor:
    return group_of_mask(MASK, grid)


def maps(
    family: str,
    look: Look,
    groups: Callable[[tuple[int, int]], Tensor] = of_mask,
    patcher: object = None,
    **settings: object,
) -> dict[tuple[int, Layer], Tensor]:
    patcher = patcher or model(family)
    with torch.inference_mode():
        return attention_maps(patcher, prompt(family, 1), PICTURE, REFERENCE, look, groups, NODE, **settings)


def hidden(family: str, samples: Tensor, timestep: int, seed: int) -> list[Tensor]:
    """What enters each self-attention, (1, tokens, C), layer by layer."""
    states, patcher = HiddenStates(), model(family)
    states.attach(patcher)
    with torch.inference_mode():
        evaluate_once(patcher, prompt(family, 1), samples, timestep, seed)
    return states.inputs


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_the_attention_of_the_layers_own_projections(family: str) -> None:
    look = Look(layers(family, "input, middle, output"), (120, 700), seed=3)
    got = maps(family, look)
    places = list(self_attention_layers(model(family).model.diffusion_model))
    assert set(got) == {(timestep, place) for timestep in look.timesteps for place in places}
    for timestep in look.timesteps:
        picture, reference = hidden(family, PICTURE, timestep, 3), hidden(family, REFERENCE, timestep, 4)
        for place, (_, layer), z, f in zip(places, labelled_layers(model(family)), picture, reference, strict=True):
            one = got[timestep, place][0]
            grid = next(grid for s in (1, 2, 4, 8) if (grid := (-(-16 // s), -(-12 // s)))[0] * grid[1] == z.shape[1])
            scores = oracle.scores(layer.attn1.to_q(z)[0], layer.attn1.to_k(f)[0], layer.attn1.heads)
            want = group_of_mask(MASK, grid).double() @ scores.softmax(-1).mean(0) * one.numel()
            assert (one.flatten() - want[0]).abs().max() < 1e-5 * one.numel()


def test_points_have_a_map_each() -> None:
    look = Look(layers("sd15", "output.8.0"), (261,))
    points = [(0, 0), (95, 127), (50, 60)]
    (together,) = maps("sd15", look, lambda grid: groups_of_points(points, (128, 96), grid)).values()
    assert together.shape == (3, 4, 10)
    for point, one in zip(points, together, strict=True):
        (alone,) = maps("sd15", look, lambda grid, point=point: groups_of_points([point], (128, 96), grid)).values()
        assert torch.allclose(alone[0], one)
    assert together.mean((1, 2)) == pytest.approx(1, abs=1e-5)
    assert not torch.equal(together[0], together[1])


def test_masked_keys_get_nothing_and_do_not_compete() -> None:
    look = Look(layers("sd15", "output.8"), (261,))
    mask = torch.zeros(64, 160)
    mask[:, 80:] = 1
    (seen,) = maps("sd15", look, reference_mask=mask).values()
    assert not seen[..., :5].any() and seen.mean().item() == pytest.approx(0.5, abs=1e-5)
    (all_keys,) = maps("sd15", look).values()
    # An equal share of every query's attention is the map of all keys, cut out, only for one query.
    assert not torch.allclose(seen[..., 5:], all_keys[..., 5:], rtol=1e-3)


def test_the_model_and_what_is_sampled_with_it_stay_as_they_are() -> None:
    patcher, noise, prompts = model("sd15"), latent(1, 4, 16, 12), (prompt("sd15", 1), prompt("sd15", 2))
    before, options = sample(patcher, noise, *prompts), str(patcher.model_options)
    maps("sd15", Look(layers("sd15"), (261,)), patcher=patcher)
    assert str(patcher.model_options) == options and not patcher.wrappers
    assert torch.equal(sample(patcher, noise, *prompts), before)


def test_methods_that_look_at_references_leave_it_alone() -> None:
    look, plain = Look(layers("sd15"), (261,)), model("sd15")
    guided = apply_refdrop(plain, RefDropSettings(0.5, guide_all(plain), Reference(latent(1, 4, 9, 11), None, 0)))
    want = maps("sd15", look)
    assert all(torch.equal(one, want[place]) for place, one in maps("sd15", look, patcher=guided).items())


def own_evaluation(patcher: Any) -> Any:
    patched = patcher.clone()
    patched.set_model_sampler_calc_cond_batch_function(lambda args: [torch.zeros_like(args["input"])] * 2)
    return patched


@pytest.mark.parametrize(
    "patch",
    [
        lambda m: PerturbedAttentionGuidance.execute(m, 3.0)[0],
        lambda m: SelfAttentionGuidance.execute(m, 0.5, 2.0)[0],
        own_evaluation,
    ],
    ids=["PAG", "SAG", "evaluates by itself"],
)
def test_what_guides_the_sampler_takes_no_part(patch: Any) -> None:
    """It may evaluate the model again, both halves of it or none; one pass of each picture is looked at."""
    look = Look(layers("sd15", "output.3, output.8"), (261,))
    want = maps("sd15", look)
    got = maps("sd15", look, patcher=patch(model("sd15")))
    assert all(distance(got[place], want[place]) < 1e-5 for place in want) and len(got) == len(want)


def test_the_part_of_picture_and_schedule_that_a_prompt_is_for_does_not_matter() -> None:
    look = Look(layers("sd15"), (261,))
    (text, options), want = prompt("sd15", 1)[0], maps("sd15", look)
    limited = {**options, "area": (4, 4, 0, 0), "start_percent": 0.9, "end_percent": 1.0, "strength": 0.2}
    with torch.inference_mode():
        got = attention_maps(
            model("sd15"), [[text, limited], *prompt("sd15", 9)], PICTURE, REFERENCE, look, of_mask, NODE
        )
    assert all(torch.equal(got[place], want[place]) for place in want)


def test_passes_end_at_the_last_layer_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    patcher = model("sd15")
    states = HiddenStates()
    states.attach(patcher)
    maps("sd15", Look(layers("sd15", "input.4, input.2"), (261,)), patcher=patcher)
    assert len(states.inputs) == 2 * 3  # input.1, input.2 and input.4, twice


def test_cut_tokens_are_refused() -> None:
    patcher = model("sd15")

    def half(n: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        return n[:, ::2] if options["block"] == ("output", 8) else n, context, value

    patcher.set_model_attn1_patch(half)
    with pytest.raises(RuntimeError, match=r"Node needs the 40 tokens .* in one piece.*HyperTile"):
        maps("sd15", Look(layers("sd15", "output.8"), (261,)), patcher=patcher)


def test_cancel_stops_it() -> None:
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        maps("sd15", Look(layers("sd15"), (261,)))


@pytest.fixture(scope="module")
def content_based() -> ModelPatcher:
    """Random weights whose first self-attention compares content: keys are made like queries, sharply."""
    patcher, _, _ = load("sd15")
    generator = torch.Generator().manual_seed(0)
    for weight in patcher.model.diffusion_model.state_dict().values():
        if weight.ndim > 1:
            weight.copy_(torch.randn(weight.shape, generator=generator) * weight[0].numel() ** -0.5)
    for layer in self_attention_layers(patcher.model.diffusion_model).values():
        layer.attn1.to_q.weight.mul_(6)
        layer.attn1.to_k.weight.copy_(layer.attn1.to_q.weight)
    return patcher


@pytest.mark.parametrize("seed", range(20))
def test_a_patch_of_a_photograph_is_found_where_it_was_shifted_to(content_based: ModelPatcher, seed: int) -> None:
    """Two windows of one photograph that share a patch.

    Random weights know textures, not objects: this holds for a patch that is the same to the pixel, read with almost no
    noise in the first layer, on a photograph with texture everywhere. In smooth ones (the person, the two cups) 13 to
    19 of 20 are found. It says nothing of how well trained weights find the same part of another picture.
    """
    rng, side = np.random.default_rng(seed), 32
    file = ROOT / "workflows" / "pictures" / "refattention_photo.jpg"
    photo = torch.from_numpy(np.asarray(Image.open(file).convert("RGB")) / np.float32(255))
    cells = F.avg_pool2d(photo.movedim(-1, 0), CELL).unsqueeze(0) * 2 - 1
    size = [int(n) for n in rng.integers(16, 21, 2)]
    patch = [int(rng.integers(0, n - k + 1)) for n, k in zip(cells.shape[-2:], size, strict=True)]

    def window() -> list[int]:
        limits = zip(patch, size, cells.shape[-2:], strict=True)
        return [int(rng.integers(max(0, a + k - side), min(a, n - side) + 1)) for a, k, n in limits]

    def latent_of(window: list[int]) -> Tensor:
        part = cells[..., window[0] : window[0] + side, window[1] : window[1] + side]
        return torch.cat([part, part.mean(1, keepdim=True)], 1) / 0.18215

    def place(window: list[int]) -> Box:
        return Box(*(CELL * n for n in (patch[1] - window[1], patch[0] - window[0], size[1], size[0])))

    windows = window(), window()
    mask = torch.zeros(1, CELL * side, CELL * side)
    place(windows[0]).cut(mask)[:] = 1
    look = Look(layers("sd15", "input.1"), (1,))
    with torch.inference_mode():
        (seen,) = attention_maps(
            content_based, prompt("sd15", 1), *map(latent_of, windows), look, lambda g: group_of_mask(mask[0], g), NODE
        ).values()
    found = find(seen[0], (CELL * side, CELL * side), Finding(smoothing=1.0, threshold=0.5, margin=0.0))
    assert found.is_match and overlap(found.box, place(windows[1])) >= 0.7
