"""Joint attention against a naive float64 softmax."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from refattention.core.deadiff.kernel import Joint, in_turn, join, joint_attention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

HEADS, WIDTH = 2, 16


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.fixture
def data() -> dict[str, Tensor]:
    return {
        "q": random(3, 10, WIDTH, seed=1),
        "k": random(3, 7, WIDTH, seed=2),
        "v": random(3, 7, WIDTH, seed=3),
        "image_k": random(1, 4, WIDTH, seed=4),
        "image_v": random(1, 4, WIDTH, seed=5),
    }


def joint(data: dict[str, Tensor], weight: float, rows: slice = slice(0, 3)) -> Joint:
    keys, values = join(data["k"][rows], data["image_k"], weight), join(data["v"][rows], data["image_v"], weight)
    return Joint(rows, keys, values, 7)


@pytest.mark.parametrize("weight", [0.0, 0.6, 1.0, 1.5])
def test_one_softmax_over_text_and_weighted_image(data: dict[str, Tensor], weight: float) -> None:
    got = joint_attention(attend, data["q"], [joint(data, weight)])
    for row in range(3):
        keys = torch.cat([data["k"][row], weight * data["image_k"][0]])
        values = torch.cat([data["v"][row], weight * data["image_v"][0]])
        assert (got[row] - oracle.attention(data["q"][row], keys, values, HEADS)).abs().max() < 1e-5


def test_zero_tokens_dampen_the_text(data: dict[str, Tensor]) -> None:
    """What weight 0 means: text attention times sigmoid(logsumexp(scores) - ln T), per head and query."""
    got = joint_attention(attend, data["q"], [joint(data, 0.0)])
    for row in range(3):
        text = oracle.attention(data["q"][row], data["k"][row], data["v"][row], HEADS)
        scores = oracle.scores(data["q"][row], data["k"][row], HEADS)
        share = torch.sigmoid(scores.logsumexp(-1) - math.log(4))
        want = text * share.T.repeat_interleave(WIDTH // HEADS, dim=1)
        assert (got[row] - want).abs().max() < 1e-5
        assert (got[row] - text).abs().max() > 0.05


def test_image_of_each_sample(data: dict[str, Tensor]) -> None:
    each = {**data, "image_k": random(3, 4, WIDTH, seed=6), "image_v": random(3, 4, WIDTH, seed=7)}
    got = joint_attention(attend, data["q"], [joint(each, 1.0)])
    alone = {key: tensor[1:2] for key, tensor in each.items()}
    want = joint_attention(attend, alone["q"], [joint(alone, 1.0, slice(0, 1))])
    assert torch.allclose(got[1:2], want, atol=1e-6)


def test_parts_of_unequal_length_serve_their_rows(data: dict[str, Tensor]) -> None:
    plain = Joint(slice(0, 1), data["k"][:1], data["v"][:1], 7)
    got = joint_attention(attend, data["q"], [plain, joint(data, 1.0, slice(1, 3))])
    assert torch.equal(got[:1], attend(data["q"][:1], data["k"][:1], data["v"][:1]))
    assert torch.allclose(got[1:], joint_attention(attend, data["q"], [joint(data, 1.0)])[1:], atol=1e-6)


def test_region(data: dict[str, Tensor]) -> None:
    region = torch.zeros(1, 10, 1)
    region[:, 4:] = 1
    region[:, 7] = 0.25
    got = joint_attention(attend, data["q"], [joint(data, 1.0)], region)
    everywhere = joint_attention(attend, data["q"], [joint(data, 1.0)])
    plain = attend(data["q"], data["k"], data["v"])
    assert torch.equal(got[:, :4], plain[:, :4])
    assert torch.equal(got[:, 8:], everywhere[:, 8:])
    assert torch.allclose(got[:, 7], 0.75 * plain[:, 7] + 0.25 * everywhere[:, 7], atol=1e-6)


def test_region_of_each_row(data: dict[str, Tensor]) -> None:
    region = torch.stack([torch.zeros(10, 1), torch.ones(10, 1), torch.zeros(10, 1)])
    parts = [joint(data, 1.0, slice(0, 1)), joint(data, 1.0, slice(1, 3))]
    got = joint_attention(attend, data["q"], parts, region)
    assert torch.allclose(got[1], joint_attention(attend, data["q"], [joint(data, 1.0)])[1], atol=1e-6)
    assert torch.allclose(got[[0, 2]], attend(data["q"], data["k"], data["v"])[[0, 2]], atol=1e-6)


def test_regions_in_turn() -> None:
    """Laid over each other, each has its share; the rest is what was there, and what is too much is divided."""
    shares = [random(1, 40, 1, seed=seed).sigmoid() for seed in (1, 2, 3)]
    shares[0][:, :4], shares[1][:, :4], shares[2][:, :4] = 1, 0, 0
    shares[0][:, 4:8], shares[1][:, 4:8], shares[2][:, 4:8] = 0, 0, 1
    shares[0][:, 8:12], shares[1][:, 8:12], shares[2][:, 8:12] = 0, 0, 0
    left = [torch.ones(1, 40, 1)]
    for ratio in in_turn(shares):
        left = [each * (1 - ratio) for each in left] + [ratio]
    total = sum(shares).clamp(min=1)
    assert torch.equal(left[1][:, :4], torch.ones(1, 4, 1)) and torch.equal(left[3][:, 4:8], torch.ones(1, 4, 1))
    assert torch.equal(left[0][:, 8:12], torch.ones(1, 4, 1))
    for got, share in zip(left[1:], shares, strict=True):
        assert (got - share / total).abs().max() < 1e-6
    assert torch.equal(in_turn(shares[:1])[0], shares[0])


def test_join_keeps_the_type_of_the_text_and_refuses_a_wrong_count() -> None:
    joined = join(random(2, 3, 8).half(), random(1, 2, 8), 1.0)
    assert joined.dtype == torch.float16 and joined.shape == (2, 5, 8)
    with pytest.raises(ValueError, match="2 sets of image tokens do not fit 3 samples"):
        join(random(3, 3, 8), random(2, 2, 8), 1.0)
