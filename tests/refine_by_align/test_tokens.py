"""The trained back end: its maps against attention written out, and what it has the sampler paint with."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import oracle
import pytest
import torch
from refattention.core.patches.blocks import Layer
from refattention.core.patches.single_evaluation import evaluate_once
from refattention.core.patches.unet import self_attention_layers
from refattention.core.refine_by_align.back_ends import CrossAttention, Scene, blanked
from refattention.core.refine_by_align.kernel import group_of_mask
from refattention.core.refine_by_align.observe import Look
from refine_support import CONTEXT_WIDTH, Codec, base, prompt
from sampling import latent, sample
from torch import Tensor

GRID = (3, 5)
TOKENS = torch.randn(1, 15, CONTEXT_WIDTH, generator=torch.Generator().manual_seed(3))
PICTURE = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(4))
REGION = torch.zeros(64, 96)
REGION[8:40, 24:64] = 1
MASK = REGION[::8, ::8][None, None]
SCENE = Scene(PICTURE, REGION, MASK)
REFERENCE = torch.rand(1, 30, 50, 3, generator=torch.Generator().manual_seed(5))


def layers(patcher: Any) -> frozenset[Layer]:
    return frozenset(self_attention_layers(patcher.model.diffusion_model))


def back_end(patcher: Any, options: dict[str, Any] | None = None) -> CrossAttention:
    return CrossAttention(patcher, lambda _: (TOKENS, GRID), Codec().encode, [[prompt(1)[0][0], options or {}]], "Node")


@torch.inference_mode()
def maps(patcher: Any, look: Look | None = None, mask: Tensor | None = None, **options: Any) -> dict[Any, Tensor]:
    return back_end(patcher, options).maps(SCENE, [REFERENCE], mask, look or Look(layers(patcher), (261,), seed=3))


def projected(patcher: Any, conditioning: list[Any], timestep: int) -> dict[Layer, tuple[Tensor, Tensor]]:
    """Queries and keys of each cross-attention, seen by the host's own patch."""
    seen: dict[Layer, tuple[Tensor, Tensor]] = {}
    places = self_attention_layers(patcher.model.diffusion_model)

    def see(n: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        place = options["block"], options["block_index"]
        attention = places[place].attn2
        seen[place] = attention.to_q(n)[0], attention.to_k(context)[0]
        return n, context, value

    watched = patcher.clone()
    watched.set_model_attn2_patch(see)
    with torch.inference_mode():
        evaluate_once(watched, conditioning, Codec().encode(PICTURE), timestep, 3)
    return seen


@pytest.mark.parametrize("inpainting", [False, True])
def test_maps_are_the_attention_of_the_layers_own_projections(inpainting: bool) -> None:
    patcher = base(inpainting)
    got = maps(patcher, Look(layers(patcher), (120, 700), seed=3))
    hidden = Codec().encode(torch.where(REGION[None, ..., None] > 0, 0.5, PICTURE))
    given = {"concat_mask": MASK, "concat_latent_image": hidden} if inpainting else {}
    places = self_attention_layers(patcher.model.diffusion_model)
    assert set(got) == {(timestep, place) for timestep in (120, 700) for place in places}
    for timestep in (120, 700):
        for place, (q, k) in projected(patcher, [[TOKENS, given]], timestep).items():
            scores = oracle.scores(q, k, places[place].attn2.heads)
            want = group_of_mask(REGION, (8, 12)).double() @ scores.softmax(-1).mean(0) * 15
            assert got[timestep, place].shape == (1, *GRID)
            assert (got[timestep, place].flatten() - want[0]).abs().max() < 1e-4


def test_masked_tokens_get_nothing_and_do_not_compete() -> None:
    mask = torch.zeros(30, 50)
    mask[:, 20:] = 1
    for seen in maps(base(), mask=mask).values():
        assert not seen[..., :2].any() and seen.mean().item() == pytest.approx(9 / 15, abs=1e-5)


def test_what_limits_a_prompt_does_not_matter_and_the_model_stays() -> None:
    patcher, noise = base(), latent(1, 4, 8, 12)
    before, options = sample(patcher, noise, prompt(1), prompt(2)), str(patcher.model_options)
    limited = maps(patcher, area=(4, 4, 0, 0), start_percent=0.9, end_percent=1.0, strength=0.2)
    assert all(torch.equal(each, limited[place]) for place, each in maps(patcher).items())
    assert str(patcher.model_options) == options and not patcher.wrappers
    assert torch.equal(sample(patcher, noise, prompt(1), prompt(2)), before)


def test_passes_end_at_the_last_layer_that_is_read() -> None:
    patcher = base()
    places = list(self_attention_layers(patcher.model.diffusion_model))
    ran = []

    def count(n: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        ran.append(options["block"])
        return n, context, value

    patcher.set_model_attn2_patch(count)
    maps(patcher, Look(frozenset(places[:2]), (261,)))
    assert ran == [place[0] for place in places[:2]]


def test_cut_tokens_are_refused_and_cancel_stops_it() -> None:
    patcher = base()
    patcher.set_model_attn2_patch(lambda n, context, value, options: (n[:, ::2], context, value))
    with pytest.raises(RuntimeError, match=r"Node needs the 96 tokens .* in one piece.*HyperTile"):
        maps(patcher)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        maps(base())


def painted(patcher: Any, strength: float) -> Tensor:
    with torch.inference_mode():
        guided = back_end(patcher).guided(SCENE, [REFERENCE], prompt(2), strength, 0)
    return sample(guided[0], latent(1, 4, 8, 12), *guided[1:])


@pytest.mark.parametrize("inpainting", [False, True])
def test_the_sampler_sees_the_tokens_and_without_guidance_zeros(inpainting: bool) -> None:
    patcher = base(inpainting)
    hidden = Codec().encode(blanked(PICTURE, MASK))
    given = {"concat_mask": MASK, "concat_latent_image": hidden} if inpainting else {}
    prompts = [[TOKENS, given]], [[torch.zeros_like(TOKENS), given]]
    want = sample(patcher, latent(1, 4, 8, 12), *prompts)
    assert torch.equal(painted(patcher, 1.0), want)
    assert not torch.equal(sample(patcher, latent(1, 4, 8, 12), prompts[0], prompts[0]), want)
    nothing = sample(patcher, latent(1, 4, 8, 12), prompts[1], prompts[1])
    assert torch.allclose(painted(patcher, 0.0), nothing, atol=1e-4)
    assert not torch.allclose(painted(patcher, 0.5), nothing, atol=1e-2)
    assert not torch.allclose(painted(patcher, 0.5), want, atol=1e-2)


def test_blanked_hides_what_is_painted_and_no_more() -> None:
    hidden = blanked(PICTURE, MASK)
    assert (hidden[0][REGION > 0] == 0.5).all() and torch.equal(hidden[0][REGION == 0], PICTURE[0][REGION == 0])
