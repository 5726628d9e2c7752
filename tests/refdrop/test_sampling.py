"""RefDrop on small models with the true topology, through the host's sampler."""

from __future__ import annotations

import oracle
import pytest
import torch
from naive import HiddenStates, NaiveRefDrop, labelled_layers
from refattention.core.patches.reference_pass import Reference
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from sampling import FAMILIES, check_model_stays, distance, guide_all, latent, model, prompt, sample
from torch import Tensor

SIZE = (4, 16, 12)


def reference_noise(shape: torch.Size, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def guide(
    patcher, strength: float, samples: Tensor | None = None, positive=None, seed: int = 5, **settings
) -> RefDropSettings:
    reference = None if samples is None else Reference(samples, positive, seed)
    return RefDropSettings(**{"strength": strength, "blocks": guide_all(patcher), "reference": reference, **settings})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "off",
    [
        {"strength": 0.0},
        {"start_percent": 0.6, "end_percent": 0.65},
        {"mask": torch.zeros(1, 64, 64)},
        {"blocks": frozenset()},
    ],
    ids=["strength 0", "range that never fires", "black mask", "no block"],
)
def test_off_is_bit_identical(family: str, off: dict) -> None:
    plain, noise = model(family), latent(2, *SIZE)
    prompts = prompt(family, 1), prompt(family, 2)
    before = sample(plain, noise, *prompts)
    patched = apply_refdrop(plain, guide(plain, **{"strength": 0.5, "samples": latent(1, 4, 9, 11), **off}))
    assert torch.equal(sample(patched, noise, *prompts), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_connected_model_stays_bit_identical(family: str) -> None:
    settings = guide(model(family), 0.5, latent(1, 4, 9, 11))
    check_model_stays(model(family), lambda plain: apply_refdrop(plain, settings), prompt(family, 1), prompt(family, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_strength_1_is_cross_frame_attention_in_every_chosen_layer(family: str) -> None:
    """Hidden states are captured outside the pack; q, k, v and the output are computed from them in float64."""
    patcher = model(family)
    blocks = guide_all(patcher) - {("output", 0), ("output", 3)}
    states = HiddenStates()
    states.attach(patcher)
    patched = apply_refdrop(
        patcher, guide(patcher, 1.0, latent(1, 4, 9, 11), blocks=blocks, mask=torch.ones(1, 50, 40))
    )
    sample(patched, latent(2, *SIZE), prompt(family, 1), prompt(family, 2), steps=1)

    labels, layers = zip(*labelled_layers(patcher), strict=True)
    attentions = [layer.attn1 for layer in layers]
    n_ref, n = states.inputs[: len(attentions)], states.inputs[len(attentions) :]
    outputs = states.outputs[-len(attentions) :]
    assert len(n) == len(attentions) and len(n_ref[0]) == 2 and len(n[0]) == 4
    followed = [label in blocks for label in labels]
    assert 0 < followed.count(False) < len(attentions) / 2
    for attention, follows, own, ref, out in zip(attentions, followed, n, n_ref, outputs, strict=True):
        with torch.inference_mode():
            source = ref.repeat_interleave(2, 0) if follows else own
            want = oracle.batched(attention.to_q(own), attention.to_k(source), attention.to_v(source), attention.heads)
            assert (out - attention.to_out(want.float())).abs().max() < 1e-4


@pytest.mark.parametrize(("family", "references"), [("sd15", 1), ("sd15", 2), ("sdxl", 1)])
def test_batch_source_equals_the_two_pass_loop(family: str, references: int) -> None:
    noise, prompts = latent(3, *SIZE), (prompt(family, 1), prompt(family, 2))
    ours = model(family)
    ours = apply_refdrop(ours, guide(ours, 0.4, batch_references=references))
    naive = model(family)
    NaiveRefDrop(batch=(0.4, references)).attach(naive)
    got, want = sample(ours, noise, *prompts, steps=4), sample(naive, noise, *prompts, steps=4)
    unguided = sample(model(family), noise, *prompts, steps=4)
    assert distance(got, want) < 1e-4
    assert torch.equal(got[:references], unguided[:references])
    assert (got - unguided)[references:].abs().max() > 1e-2


@pytest.mark.parametrize("own_prompt", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_latent_source_equals_the_two_pass_loop(family: str, own_prompt: bool) -> None:
    samples = [latent(1, 4, 9, 11, seed=3), latent(1, 4, 16, 10, seed=4)]
    prompts = prompt(family, 1), prompt(family, 2)
    positive = prompt(family, 3) if own_prompt else None
    ours, naive = model(family), model(family)
    patched = apply_refdrop(ours, guide(ours, 0.4, samples[0], positive, seed=5))
    patched = apply_refdrop(patched, guide(ours, -0.2, samples[1], positive, seed=6))
    text = positive[0][0] if positive else None
    for one in (*prompts, *([positive] if positive else [])):
        # The naive loop cannot encode a pooled text and a picture size of the reference's own: all share them here.
        one[0][1].update({**prompts[0][0][1], "width": 96, "height": 128, "target_width": 96, "target_height": 128})
    references = [
        (strength, naive.model.process_latent_in(one), reference_noise(one.shape, seed), text)
        for strength, one, seed in zip((0.4, -0.2), samples, (5, 6), strict=True)
    ]
    NaiveRefDrop(references).attach(naive)
    noise = latent(2, *SIZE)
    assert distance(sample(patched, noise, *prompts, steps=4), sample(naive, noise, *prompts, steps=4)) < 1e-4
