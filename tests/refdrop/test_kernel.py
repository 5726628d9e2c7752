"""RefDrop kernels against the float64 oracle."""

from __future__ import annotations

import oracle
import pytest
import torch
from refattention.core.refdrop.kernel import Branch, attend_to_both, reference_feature_guidance
from torch import Tensor

G, B, N, M, HEADS, SIZE = 2, 3, 20, 13, 4, 8
C = HEADS * SIZE


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The host's convention: heads not split, (batch, tokens, C)."""
    q, k, v = (t.unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for t in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def tensors(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.fixture
def own() -> list[Tensor]:
    return tensors(0, *[(G * B, N, C)] * 3)


def expected(
    own: list[Tensor], references: list[tuple[Tensor, Tensor]], weights: list[Tensor], first: int = 0
) -> Tensor:
    """Sample by sample; `weights` are (B, N, 1)."""
    samples = []
    for g in range(G):
        for b in range(B):
            q, k, v = (t[g * B + b] for t in own)
            if b < first:
                samples.append(oracle.attention(q, k, v, HEADS))
                continue
            pairs = [(keys[g], values[g]) for keys, values in references]
            samples.append(oracle.rfg(q, k, v, pairs, [weight[b] for weight in weights], HEADS))
    return torch.stack(samples)


@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.4, 1.0])
def test_one_reference(own: list[Tensor], strength: float) -> None:
    reference = tuple(tensors(1, *[(G, M, C)] * 2))
    out = reference_feature_guidance(attend, *own, G, [Branch(strength, *reference)])
    want = expected(own, [reference], [torch.full((B, N, 1), strength)])
    assert (out - want).abs().max() < 1e-5


def test_several_references_with_masks_and_sizes(own: list[Tensor]) -> None:
    references = [tuple(tensors(seed, *[(G, size, C)] * 2)) for seed, size in ((1, M), (2, 5), (3, 40))]
    weights = [tensors(4, (B, N, 1))[0].sigmoid() * 0.5, torch.full((B, N, 1), -0.3), tensors(5, (1, N, 1))[0].tanh()]
    branches = [Branch(weight, *reference) for weight, reference in zip(weights, references, strict=True)]
    out = reference_feature_guidance(attend, *own, G, branches)
    want = expected(own, references, [weight.expand(B, N, 1) for weight in weights])
    assert (out - want).abs().max() < 1e-5


def test_samples_before_first_are_left_alone(own: list[Tensor]) -> None:
    reference = tuple(tensors(1, *[(G, M, C)] * 2))
    mask = tensors(2, (1, N, 1))[0].sigmoid()
    out = reference_feature_guidance(attend, *own, G, [Branch(mask, *reference, first=2)])
    want = expected(own, [reference], [mask.expand(B, N, 1)], first=2)
    assert (out - want).abs().max() < 1e-5
    plain = attend(*own).unflatten(0, (G, B))
    assert torch.equal(out.unflatten(0, (G, B))[:, :2], plain[:, :2])


def test_tokens_of_weight_zero_are_bit_identical(own: list[Tensor]) -> None:
    reference = tuple(tensors(1, *[(G, M, C)] * 2))
    mask = (torch.arange(N) % 2).float().view(1, N, 1)
    out = reference_feature_guidance(attend, *own, G, [Branch(mask, *reference)])
    plain = attend(*own)
    assert torch.equal(out[:, ::2], plain[:, ::2])
    assert not torch.equal(out[:, 1::2], plain[:, 1::2])


def test_concat(own: list[Tensor]) -> None:
    keys, values = tensors(1, *[(G, M, C)] * 2)
    out = reference_feature_guidance(attend, *own, G, [Branch(1.0, keys, values, with_own=True)])
    q, k, v = own
    k, v = (torch.cat([r.repeat_interleave(B, 0), t], 1) for r, t in ((keys, k), (values, v)))
    assert (out - oracle.batched(q, k, v, HEADS)).abs().max() < 1e-5


def test_concat_is_rfg_with_the_softmax_share_as_coefficient(own: list[Tensor]) -> None:
    """Att(Q, [K1; K], [V1; V]) = C Att(Q, K1, V1) + (1 - C) Att(Q, K, V), C = share of the reference in the softmax."""
    keys, values = tensors(1, *[(G, M, C)] * 2)
    q, k, v = (t.unflatten(0, (G, B)) for t in own)
    both = attend_to_both(attend, q, k, v, keys, values)
    for g in range(G):
        for b in range(B):
            to_reference = oracle.scores(q[g, b], keys[g], HEADS).exp().sum(-1)
            to_own = oracle.scores(q[g, b], k[g, b], HEADS).exp().sum(-1)
            share = (to_reference / (to_reference + to_own)).T.repeat_interleave(SIZE, -1)  # (N, C)
            want = oracle.rfg(q[g, b], k[g, b], v[g, b], [(keys[g], values[g])], [share], HEADS)
            assert (both[g, b] - want).abs().max() < 1e-5


def test_own_attention_is_not_computed_where_the_reference_replaces_it(own: list[Tensor]) -> None:
    references = [tuple(tensors(seed, *[(G, M, C)] * 2)) for seed in (1, 2)]
    calls = []

    def counting(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append(k.shape)
        return attend(q, k, v)

    branches = [Branch(0.5, *reference) for reference in references]
    out = reference_feature_guidance(counting, *own, G, branches)
    assert calls == [(G, M, C)] * 2
    assert (out - expected(own, references, [torch.full((B, N, 1), 0.5)] * 2)).abs().max() < 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 4e-3), (torch.bfloat16, 4e-2)])
def test_half_precision(own: list[Tensor], dtype: torch.dtype, tolerance: float) -> None:
    reference = tuple(t.to(dtype) for t in tensors(1, *[(G, M, C)] * 2))
    own = [t.to(dtype) for t in own]
    out = reference_feature_guidance(attend, *own, G, [Branch(0.3, *reference)])
    assert out.dtype == dtype
    assert (out - expected(own, [reference], [torch.full((B, N, 1), 0.3)])).abs().max() < tolerance


@pytest.mark.parametrize("strength", [-1.0, 0.4, 1.0])
def test_image_tokens_of_a_joint_attention(own: list[Tensor], strength: float) -> None:
    """The difference of the two attentions is added to what the model computes for the image tokens."""
    reference = tuple(tensors(1, *[(G, M, C)] * 2))
    (joint,) = tensors(2, (G * B, N, C))
    out = reference_feature_guidance(attend, *own, G, [Branch(strength, *reference)], joint.clone())
    change = expected(own, [reference], [torch.full((B, N, 1), strength)]) - oracle.batched(*own, HEADS)
    assert (out - joint - change).abs().max() < 1e-5


def test_tokens_of_weight_0_keep_the_joint_attention_to_the_bit(own: list[Tensor]) -> None:
    reference = tuple(tensors(1, *[(G, M, C)] * 2))
    (joint,) = tensors(2, (G * B, N, C))
    weight = torch.zeros(1, N, 1)
    weight[:, 7:] = 0.5
    out = reference_feature_guidance(attend, *own, G, [Branch(weight, *reference)], joint.clone())
    assert torch.equal(out[:, :7], joint[:, :7])
    assert (out - joint)[:, 7:].abs().min() > 0


@pytest.mark.parametrize("with_own", [False, True])
def test_a_reference_for_each_sample(own: list[Tensor], with_own: bool) -> None:
    keys, values = tensors(1, *[(G, B, M, C)] * 2)
    out = reference_feature_guidance(attend, *own, G, [Branch(0.4, keys, values, with_own=with_own)])
    alone = Branch(0.4, keys.flatten(0, 1), values.flatten(0, 1), with_own=with_own)
    assert (out - reference_feature_guidance(attend, *own, G * B, [alone])).abs().max() < 1e-6
