"""P3S kernels against float64 formulas that are written out in full."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from refattention.core.kernels.p3s import (
    attention_consistency,
    attention_map,
    biased_latent,
    injected_states,
    injection_weight,
)
from torch import Tensor

B, N, L, HEADS, WIDTH = 2, 12, 5, 2, 8


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int = 1) -> Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def test_encoder() -> None:
    latent, q, k, v = tensors((B, 4, 3, 4), (B, N, WIDTH), (B, L, WIDTH), (B, L, 4))
    out = biased_latent(attend, latent, q, k, v)
    for b in range(B):
        for row in range(3):
            for column in range(4):
                query = q[b, 4 * row + column]
                shares = [math.exp(float(query @ k[b, j]) / WIDTH**0.5) for j in range(L)]
                bias = sum(share * v[b, j] for j, share in enumerate(shares)) / sum(shares)
                assert torch.allclose(out[b, :, row, column], latent[b, :, row, column] + bias)


def test_injection() -> None:
    """Eq. 7 and 8 with projections, sample by sample."""
    z, f, w_q, w_k, w_v = tensors((B, N, WIDTH), (B, N, WIDTH), *[(WIDTH, WIDTH)] * 3)
    keys, values = injected_states(z, f, f, epsilon=0.7, value_weight=0.2)
    out = attend(z @ w_q, keys @ w_k, values @ w_v, HEADS)
    for b in range(B):
        k = torch.cat([z[b], 0.7 * f[b]]) @ w_k
        v = torch.cat([z[b] + 0.2 * 0.7 * f[b], 0.7 * f[b]]) @ w_v
        assert torch.allclose(out[b], oracle.attention(z[b] @ w_q, k, v, HEADS))


def test_one_reference_of_another_size_serves_all_samples() -> None:
    z, f, on_grid = tensors((B, N, WIDTH), (1, 7, WIDTH), (1, N, WIDTH))
    keys, values = injected_states(z, f, on_grid, epsilon=0.5, value_weight=0.2)
    for b in range(B):
        assert torch.equal(keys[b], torch.cat([z[b], 0.5 * f[0]]))
        assert torch.allclose(values[b], torch.cat([z[b] + 0.1 * on_grid[0], 0.5 * f[0]]))


def test_zeros_as_tokens_are_not_nothing() -> None:
    """N keys of zeros have a score of 0 each: attention shrinks by `e / (e + N)`, e the sum of the own scores."""
    (z,) = tensors((1, N, WIDTH))
    zero = torch.zeros_like(z)
    keys, values = injected_states(z, zero, zero, epsilon=1.0, value_weight=0.2)
    own = oracle.scores(z[0], z[0], 1).exp().sum(-1).squeeze(0)
    want = oracle.attention(z[0], z[0], z[0], 1) * (own / (own + N)).unsqueeze(-1)
    got = attend(z, keys, values)[0]
    assert torch.allclose(got, want)
    assert not torch.allclose(got, attend(z, z, z)[0], atol=0.1)


def test_identity_at_zero_leaves_tokens_of_zeros_out() -> None:
    z, f = tensors((B, N, WIDTH), (B, N, WIDTH))
    for source in injected_states(z, torch.zeros_like(f), torch.zeros_like(f), 1.2, 0.2, identity_at_zero=True):
        assert torch.equal(source, z)
    f[:, ::2] = 0
    f[0, 1] = 0  # but not in the other sample, so it stays
    keys, values = injected_states(z, f, f, 1.0, 0.2, identity_at_zero=True)
    assert torch.equal(keys, torch.cat([z, f[:, 1::2]], dim=1))
    assert torch.equal(values, torch.cat([z + 0.2 * f, f[:, 1::2]], dim=1))


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("paper", (1.2, 1.075, 0.7)),
        ("fixed", (1.0, 1.0, 1.0)),
        ("increasing", (0.0, 0.25, 1.0)),
        ("decreasing", (1.0, 0.75, 0.0)),
        ("off", (0.0, 0.0, 0.0)),
    ],
)
def test_schedules(schedule: str, values: tuple[float, ...]) -> None:
    for time, value in zip((0.0, 0.5, 1.0), values, strict=True):
        assert injection_weight(schedule, time) == pytest.approx(value, abs=1e-12)


def test_schedule_parameters() -> None:
    assert injection_weight("paper", 0.5, alpha=0.3, beta=0.1, exponent=3) == pytest.approx(1 - 0.3 / 8 + 0.1)
    assert injection_weight("decreasing", 0.5, exponent=3) == pytest.approx(1 - 1 / 8)


def test_attention_consistency() -> None:
    (q_copy, q), (k_copy, k) = tensors(*[(B, N, WIDTH)] * 2), tensors(*[(B, L, WIDTH)] * 2)
    want = 0.0
    for b in range(B):
        squares, sums, entries = 0.0, 0.0, 0
        for copy, own in zip(oracle.scores(q_copy[b], k_copy[b], HEADS), oracle.scores(q[b], k[b], HEADS), strict=True):
            copy, own = (scores.exp() / scores.exp().sum(-1, keepdim=True) for scores in (copy, own))
            squares += float(((copy - own) ** 2).sum())
            sums += float(copy.sum() + own.sum()) / 2
            entries += copy.numel()
        want += squares / entries / sums / B
    maps = attention_map(q_copy, k_copy, HEADS), attention_map(q, k, HEADS)
    assert float(attention_consistency(*maps)) == pytest.approx(want)
    assert float(attention_consistency(maps[0], maps[0])) == 0
    first = float(attention_consistency(maps[0][:1], maps[1][:1]))
    assert float(attention_consistency(*(one[:1].repeat(3, 1, 1, 1) for one in maps))) == pytest.approx(first)


def test_gradients() -> None:
    shapes = [(1, 2, 2, 2), (1, 4, 3), (1, 2, 3), (1, 2, 2), (2, 3, 4), (1, 2, 4), (1, 3, 4), (2, 2, 3, 2), (2, 2, 3, 2)]
    latent, q, k, v, z, f, on_grid, *maps = (tensor.requires_grad_() for tensor in tensors(*shapes))
    for inputs, kernel in [
        ((latent, q, k, v), lambda *inputs: biased_latent(attend, *inputs)),
        ((z, f, on_grid), lambda *inputs: injected_states(*inputs, epsilon=0.7, value_weight=0.2)),
        ((z, f, on_grid), lambda *inputs: injected_states(*inputs, 0.7, 0.2, identity_at_zero=True)),
        ((z, k), lambda z, k: attention_map(z[..., :2], k[..., :2].expand(2, -1, -1), heads=2)),
        (maps, lambda *inputs: attention_consistency(*(one.softmax(-1) for one in inputs))),
    ]:
        assert torch.autograd.gradcheck(kernel, inputs)
