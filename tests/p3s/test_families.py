"""P3S without training on every family of transformers for pictures, against attention written out; what is refused."""

from __future__ import annotations

import math
from typing import Any

import editing
import oracle
import p3s_support
import pytest
import torch
from families import FAMILIES, VIDEO, tiny_latent, tiny_model, tiny_prompt
from more_families import MORE
from naive_p3s import NaiveFamilyP3S
from refattention.core.p3s.run import P3SRun, time_of
from refattention.core.p3s.settings import NONE, P3SSettings, Schedule
from refattention.core.p3s.wrappers import apply_p3s
from refattention.core.patches.attention import TokenSequence
from refattention.core.patches.families.table import attentions_of
from refattention.core.patches.reference_pass import Reference
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from refattention.nodes.p3s import P3SInject
from sampling import distance, sample
from torch import Tensor

PICTURES = [name for name in FAMILIES if name not in (*VIDEO, "sd15", "sd2", "pid")]
TRANSFORMERS = [name for name in PICTURES if name not in MORE]
SUBJECT, LEFT = torch.zeros(24, 30), torch.zeros(16, 20)
SUBJECT[5:, :17] = 1
LEFT[:, :10] = 1


def reference(name: str, seed: int = 3, other_size: bool = False) -> Tensor:
    size = ((64, 96) if name == "hidream_o1" else (6, 8)) if other_size else None
    return tiny_latent(name, seed=seed, size=size)


def injected(name: str, references: list[Tensor], **settings: Any) -> Any:
    patcher = tiny_model(name)
    settings = {"schedule": Schedule("fixed"), **settings}
    for samples in references:
        patcher = apply_p3s(patcher, P3SSettings(Reference(samples, None, 5), **settings))
    return patcher


def naive(name: str, references: list[Tensor], strength: float = 1.0, **settings: Any) -> Any:
    outside = [(each, torch.randn(each.shape, generator=torch.Generator().manual_seed(5))) for each in references]
    return NaiveFamilyP3S(name, strength, outside, **settings).attach(tiny_model(name))


def run(name: str, patcher: Any, batch: int = 1, **settings: Any) -> Tensor:
    made = editing.prompt if name == "qwen" else tiny_prompt  # with a mask over the text's padding
    settings = {"steps": 1, "cfg": FAMILIES[name].cfg, **settings}
    return sample(patcher, tiny_latent(name, batch), made(name, 1), made(name, 2), **settings)


def require_same(name: str, ours: Any, theirs: Any, **settings: Any) -> None:
    got, want, plain = (run(name, each, **settings) for each in (ours, theirs, tiny_model(name)))
    effect = distance(want, plain)
    assert effect > 5e-4
    assert distance(got, want) < min(1e-4, 0.02 * effect)


@pytest.mark.parametrize("name", PICTURES)
def test_equals_the_oracle(name: str) -> None:
    """The whole equation with a part of a reference as large as the picture, usual guidance, two pictures or one."""
    subject = {"value_strength": 0.3}
    ours = injected(name, [reference(name)], strength=0.8, subject_mask=SUBJECT[None], **subject)
    require_same(
        name,
        ours,
        naive(name, [reference(name)], 0.8, reference_mask=SUBJECT, **subject),
        batch=1 if name in MORE else 2,
    )


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_other_way_of_guidance_two_subjects_of_another_size_in_a_region(name: str) -> None:
    """Without CFG what is usually run with it, and with CFG what is distilled; there the negative half gets none."""
    references = [reference(name, seed, other_size=True) for seed in (3, 4)]
    cfg = 3.0 if FAMILIES[name].cfg == 1 else 1.0
    ours = injected(name, references, value_strength=0.0, mask=LEFT[None], negative=NONE)
    require_same(name, ours, naive(name, references, mask=LEFT, is_conditional=True), cfg=cfg)


def test_one_half_of_a_batch_with_masks() -> None:
    """Qwen-Image masks what pads its text."""
    ours = injected("qwen", [reference("qwen")], value_strength=0.2, negative=NONE)
    require_same("qwen", ours, naive("qwen", [reference("qwen")], value_strength=0.2, is_conditional=True), batch=2)


@pytest.mark.parametrize("name", PICTURES)
def test_off_is_bit_identical_and_the_connected_model_stays(name: str) -> None:
    plain, model = run(name, tiny_model(name)), tiny_model(name)
    assert torch.equal(run(name, injected(name, [reference(name)], strength=0.0)), plain)
    never = injected(name, [reference(name)], start_percent=0.999, end_percent=0.999)
    assert torch.equal(run(name, never), plain)
    apply_p3s(model, P3SSettings(Reference(reference(name), None, 5)))
    assert not model.wrappers and "refattention.p3s" not in model.model_options["transformer_options"]


def test_the_pictures_rows_of_a_joint_attention_are_computed_once() -> None:
    """Five text tokens and 24 of the picture: its rows see as many of the subject, then only the text's are left."""
    seen: list[tuple[int, int]] = []

    def watch(func: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        tokens = 2 if kwargs.get("skip_reshape") else 1
        seen.append((q.shape[tokens], k.shape[tokens]))
        return func(q, k, v, *args, **kwargs)

    patcher = injected("flux", [reference("flux")])
    patcher.model_options["transformer_options"]["optimized_attention_override"] = watch
    run("flux", patcher)
    read = [(29, 29)] * 3  # the subject's pass ends at the last of four layers
    assert seen == [*read, *[(24, 29 + 24), (5, 29)] * 4]


@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("is_bool", [False, True])
def test_masks_hide_other_tokens_and_none_of_the_subjects(per_query: bool, is_bool: bool) -> None:
    """Two text tokens, three of the picture, one of a reference picture in the prompt; two more of a subject."""
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 4, 6, 8, generator=generator)
    hidden = torch.rand(4, 6 if per_query else 1, 6, generator=generator) < 0.3
    mask = ~hidden if is_bool else torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        heads = (t.unflatten(2, (2, -1)).transpose(1, 2) for t in (q, k, v))
        mask = None if mask is None else mask.unsqueeze(1)
        return torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)

    q, own_k, own_v = torch.randn(3, 2, 5, 8, generator=generator)
    own_k, own_v = own_k.clone(), own_v.clone()
    tokens, second = torch.tensor([0, 2]), slice(2, 4)
    sequence = TokenSequence(k, v, mask, slice(2, 5), (1,), slice(2, 5), attend).of_chunks([1], 2)
    got = sequence.attend_to_more(q[:, :2], tokens, own_k, own_v)
    for row, (keys, values, seen) in enumerate(zip(k[second], v[second], ~hidden[second], strict=True)):
        for number, token in enumerate(tokens):
            keep = torch.cat([seen[2 + token if per_query else 0], torch.ones(2, dtype=torch.bool)])
            all_k = torch.cat([keys[:2], own_k[row][:3], keys[5:], own_k[row][3:]])[keep]
            all_v = torch.cat([values[:2], own_v[row][:3], values[5:], own_v[row][3:]])[keep]
            want = oracle.attention(q[row, number : number + 1], all_k, all_v, 2)
            assert (got[row, number] - want[0]).abs().max() < 1e-5


def test_time_of_a_flow_model_is_before_its_shift() -> None:
    """By the formulas of their schedules, turned around."""
    for level in (0.05, 0.5, 0.93):
        shift = tiny_model("sd3").get_model_object("model_sampling").shift
        assert shift != 1
        time = level / (shift - (shift - 1) * level)
        assert time_of(tiny_model("sd3").get_model_object("model_sampling"), level) == pytest.approx(time, abs=1e-5)
        sampling = tiny_model("flux").get_model_object("model_sampling")
        time = 1 / (math.exp(sampling.shift) * (1 / level - 1) + 1)
        assert time_of(sampling, level) == pytest.approx(time, abs=1e-5)


def test_noise_is_biased_where_latents_have_a_frame() -> None:
    patcher = injected("qwen", [reference("qwen", other_size=True)], noise_bias=0.1, mask=LEFT[None])
    asked = patcher.model_options["transformer_options"]["refattention.p3s"]
    guider = type(
        "Guider", (), {"model_patcher": patcher, "conds": {"positive": []}, "cfg": 1.0, "model_options": {}}
    )()
    noise = tiny_latent("qwen", 2)
    added = P3SRun(asked, guider, noise.shape, torch.ones(1)).noise(noise) - noise
    assert added.shape == noise.shape and added[..., :5].abs().min() > 0 and not added[..., 7:].any()


# ---- what is refused ----


def test_refdrop_and_p3s_on_a_transformer_are_one_too_many() -> None:
    def guided(patcher: Any) -> Any:
        blocks = frozenset(attentions_of(patcher, "test").blocks)
        return apply_refdrop(patcher, RefDropSettings(0.3, blocks, Reference(reference("flux"), None, 5)))

    subject = P3SSettings(Reference(reference("flux"), None, 5))
    for patcher in (guided(injected("flux", [reference("flux")])), apply_p3s(guided(tiny_model("flux")), subject)):
        with pytest.raises(RuntimeError, match=r"P3S Inject and another node of this pack.*of this Flux model"):
            run("flux", patcher)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wan21", "P3S Inject works on pictures, but WAN21_T2V makes videos"),
        ("svd", "P3S Inject works on pictures, but SVD_img2vid makes videos"),
        ("pid", "P3S Inject cannot read a reference with the prompt of a PiD model: it enlarges"),
    ],
)
def test_other_models_are_refused_by_name(name: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        P3SInject.execute(tiny_model(name), **p3s_support.WIDGETS, reference_latent={"samples": reference(name)})


def test_an_adapter_is_for_a_unet() -> None:
    with pytest.raises(RuntimeError, match="P3S Inject with an adapter cannot patch the attention of a Flux model"):
        p3s_support.inject(tiny_model("flux"), adapter=object())
