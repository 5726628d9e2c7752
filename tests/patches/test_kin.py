"""The host's classes that share an architecture: what their own nodes put into prompts serves references, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kin import KIN
from refattention.core.p3s.settings import P3SSettings
from refattention.core.p3s.wrappers import apply_p3s
from refattention.core.patches.attention import AttentionCall
from refattention.core.patches.families.table import attentions_of
from refattention.core.patches.reference_pass import Reference
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from refattention.nodes.refdrop_record import RefDropRecord
from sampling import distance, latent, sample
from tiny_family import random_model, random_prompt
from torch import Tensor

STEPS = 2


def kin_prompt(name: str, seed: int) -> list[Any]:
    return random_prompt(KIN[name], seed, 5)


def kin_latent(name: str, batch: int, seed: int = 0) -> Tensor:
    return latent(batch, *KIN[name].size, seed=seed)


def guided(name: str, own: bool, strength: float = 0.5) -> Any:
    patcher = random_model(KIN[name])
    reference = Reference(kin_latent(name, 1, 3), kin_prompt(name, 5) if own else None, 7)
    return apply_refdrop(
        patcher, RefDropSettings(strength, frozenset(attentions_of(patcher, "test").blocks), reference)
    )


def sampled(name: str, patcher: Any) -> Tensor:
    in_batch = len(KIN[name].size) == 3  # where the frames of a video are
    noise = kin_latent(name, KIN[name].frames if in_batch else 1)
    return sample(patcher, noise, kin_prompt(name, 1), kin_prompt(name, 2), steps=STEPS, cfg=KIN[name].cfg)


@pytest.mark.parametrize("name", KIN)
def test_a_reference_is_read_with_the_samplers_prompt_and_with_its_own(name: str) -> None:
    plain = sampled(name, random_model(KIN[name]))
    pictures = [sampled(name, guided(name, own)) for own in (False, True)]
    assert all(picture.isfinite().all() for picture in pictures)
    assert all(distance(picture, plain) > 1e-4 for picture in pictures)
    assert distance(*pictures) > 1e-4
    assert torch.equal(sampled(name, guided(name, True)), pictures[1])
    assert torch.equal(sampled(name, guided(name, True, 0.0)), plain)


def test_what_an_upscaler_has_in_place_of_self_attention_is_left_alone() -> None:
    """A second attention to the text, which ComfyUI announces as self-attention."""
    patcher, calls, announced = random_model(KIN["x4"]), [], []
    attentions = attentions_of(patcher, "test")

    def handle(call: AttentionCall) -> Tensor:
        calls.append(call.block)
        assert call.q.shape == call.k.shape
        return call.plain()

    def announce(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        announced.append(options["block"])
        return q, k, v

    options = {"patches": {"attn1_patch": [announce]}, "cond_or_uncond": [0], "uuids": [0]}
    with torch.inference_mode():
        patcher.model.diffusion_model(
            torch.rand(1, 7, 8, 12), torch.ones(1), torch.rand(1, 5, 24), torch.ones(1, dtype=torch.int64),
            transformer_options=attentions.route(kin_latent("x4", 1), {}, options, handle),
        )  # fmt: skip
    assert calls == list(attentions.blocks)
    assert len(announced) > len(calls)


def test_p3s_injects_into_an_upscaler() -> None:
    patcher = apply_p3s(random_model(KIN["x4"]), P3SSettings(Reference(kin_latent("x4", 1, 3), None, 7)))
    assert distance(sampled("x4", patcher), sampled("x4", random_model(KIN["x4"]))) > 1e-4


@pytest.mark.parametrize("name", ["hunyuan 1.5 sr", "hunyuan", "fun control", "cogvideo"])
def test_a_prompt_for_a_longer_video_is_refused(name: str) -> None:
    given = kin_prompt(name, 5)
    beside = given[0][1]["concat_latent_image"]
    given[0][1] = {**given[0][1], "concat_latent_image": beside.repeat(1, 1, 3, 1, 1)}
    patcher, picture = random_model(KIN[name]), kin_latent(name, 1, 3)
    blocks = frozenset(attentions_of(patcher, "test").blocks)
    message = r"holds a video of 3 latent frames beside its text, but the reference has 1\. Connect the text alone"
    with pytest.raises(ValueError, match=f"^reference_positive {message}"):
        sampled(name, apply_refdrop(patcher, RefDropSettings(0.5, blocks, Reference(picture, given, 7))))
    with pytest.raises(ValueError, match=f"^positive {message}"):
        RefDropRecord.execute(
            patcher, given, kin_prompt(name, 2), 7, STEPS, 4.0, "euler", "simple", 1.0, "all", "", 1,
            reference_latent={"samples": picture},
        )  # fmt: skip
