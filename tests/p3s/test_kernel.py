"""P3S kernels against float64 formulas that are written out in full."""

from __future__ import annotations

import math
from typing import Any

import oracle
import pytest
import torch
from refattention.core.kernels.attention import attention_map
from refattention.core.p3s.kernel import (
    attention_consistency,
    biased_latent,
    injected,
    injection_weight,
    is_nonzero,
    on_grid,
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


def test_injection_is_the_equation_on_hidden_states() -> None:
    """Eq. 7 and 8 before the projections, sample by sample."""
    z, f, w_q, w_k, w_v = tensors((B, N, WIDTH), (B, N, WIDTH), *[(WIDTH, WIDTH)] * 3)
    keys, values = injected(z @ w_k, z @ w_v, f @ w_k, f @ w_v, f @ w_v, epsilon=0.7, value_strength=0.2)
    out = attend(z @ w_q, keys, values, HEADS)
    for b in range(B):
        k = torch.cat([z[b], 0.7 * f[b]]) @ w_k
        v = torch.cat([z[b] + 0.2 * 0.7 * f[b], 0.7 * f[b]]) @ w_v
        assert torch.allclose(out[b], oracle.attention(z[b] @ w_q, k, v, HEADS))


def test_one_reference_of_another_size_serves_all_samples() -> None:
    k, v, f_k, f_v, spread = tensors(*[(2, B, N, WIDTH)] * 2, *[(2, 1, 7, WIDTH)] * 2, (2, 1, N, WIDTH))
    keys, values = injected(k, v, f_k, f_v, spread, epsilon=0.5, value_strength=0.2)
    for half in range(2):
        for b in range(B):
            assert torch.equal(keys[half, b], torch.cat([k[half, b], 0.5 * f_k[half, 0]]))
            assert torch.allclose(values[half, b, :N], v[half, b] + 0.1 * spread[half, 0])
            assert torch.equal(values[half, b, N:], 0.5 * f_v[half, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_tokens_go_to_another_grid_as_a_picture_would(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    interpolate = torch.nn.functional.interpolate

    def in_float32(pictures: Tensor, **options: Any) -> Tensor:
        assert pictures.dtype == torch.float32  # in half precision not every device has it
        return interpolate(pictures, **options)

    monkeypatch.setattr(torch.nn.functional, "interpolate", in_float32)
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    ramp = torch.stack([rows, columns], dim=-1).reshape(1, 24, 2).to(dtype)
    assert on_grid(ramp, (4, 6), (4, 6)) is ramp
    half = on_grid(ramp.expand(3, 2, -1, -1), (4, 6), (4, 3)).unflatten(2, (4, 3))
    assert half.shape == (3, 2, 4, 3, 2) and half.dtype == dtype
    assert torch.allclose(half[..., 0].float(), torch.arange(4.0)[:, None].expand(4, 3), atol=1e-5)
    assert torch.allclose(half[..., 1, 1].float(), torch.tensor(2.5))


def test_zeros_as_tokens_are_not_nothing() -> None:
    """N keys of zeros have a score of 0 each: attention shrinks by `e / (e + N)`, e the sum of the own scores."""
    (z,) = tensors((1, N, WIDTH))
    zero = torch.zeros_like(z)
    keys, values = injected(z, z, zero, zero, zero, epsilon=1.0, value_strength=0.2)
    own = oracle.scores(z[0], z[0], 1).exp().sum(-1).squeeze(0)
    want = oracle.attention(z[0], z[0], z[0], 1) * (own / (own + N)).unsqueeze(-1)
    got = attend(z, keys, values)[0]
    assert torch.allclose(got, want)
    assert not torch.allclose(got, attend(z, z, z)[0], atol=0.1)


def test_zeros_can_be_left_out() -> None:
    z, f = tensors((B, N, WIDTH), (B, N, WIDTH))
    zero = torch.zeros_like(f)
    nothing = zero[:, is_nonzero(zero)]
    for got in injected(z, z, nothing, nothing, zero, epsilon=1.2, value_strength=0.2):
        assert torch.equal(got, z)
    f[:, ::2] = 0
    f[0, 1] = 0  # but not in the other sample, so it stays
    assert is_nonzero(f).nonzero().flatten().tolist() == list(range(1, N, 2))


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


@pytest.mark.parametrize("average", ["sum", "mean"])
def test_attention_consistency(average: str) -> None:
    (q_copy, q), (k_copy, k) = tensors(*[(B, N, WIDTH)] * 2), tensors(*[(B, L, WIDTH)] * 2)
    want = 0.0
    for b in range(B):
        squares, sums, entries = 0.0, 0.0, 0
        for copy, own in zip(oracle.scores(q_copy[b], k_copy[b], HEADS), oracle.scores(q[b], k[b], HEADS), strict=True):
            copy, own = (scores.exp() / scores.exp().sum(-1, keepdim=True) for scores in (copy, own))
            squares += float(((copy - own) ** 2).sum())
            sums += float(copy.sum() + own.sum()) / 2
            entries += copy.numel()
        divisor = sums if average == "sum" else sums / entries
        want += squares / entries / divisor / B
    maps = attention_map(q_copy, k_copy, HEADS), attention_map(q, k, HEADS)
    assert float(attention_consistency(*maps, average)) == pytest.approx(want)
    assert float(attention_consistency(maps[0], maps[0], average)) == 0
    first = float(attention_consistency(maps[0][:1], maps[1][:1], average))
    assert float(attention_consistency(*(one[:1].repeat(3, 1, 1, 1) for one in maps), average)) == pytest.approx(first)


def test_only_the_mean_leaves_the_loss_as_it_is_on_a_finer_grid() -> None:
    maps = [attention_map(*tensors((B, N, WIDTH), (B, L, WIDTH)), HEADS), torch.full((B, HEADS, N, L), 1 / L).double()]
    finer = [one.repeat(1, 1, 4, 1) for one in maps]
    assert float(attention_consistency(*finer)) == pytest.approx(float(attention_consistency(*maps)))
    literal = float(attention_consistency(*maps, "sum"))
    assert float(attention_consistency(*finer, "sum")) == pytest.approx(literal / 4)
    assert float(attention_consistency(*maps)) == pytest.approx(literal * HEADS * N * L)


def test_gradients() -> None:
    def projected(z: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        f = f[:, is_nonzero(f)]
        return injected(z, z, f, f, on_grid(f, (1, 2), (1, 3)), epsilon=0.7, value_strength=0.2)

    latent, q, k, v, z, f, one, other = (
        tensor.requires_grad_()
        for tensor in tensors(
            *[(1, 2, 2, 2), (1, 4, 3), (1, 2, 3), (1, 2, 2)], *[(2, 3, 4), (1, 2, 4), (2, 2, 3, 2), (2, 2, 3, 2)]
        )
    )
    for kernel, inputs in [
        (lambda *given: biased_latent(attend, *given), (latent, q, k, v)),
        (projected, (z, f)),
        (lambda z: attention_map(z, z, heads=2), (z,)),
        (lambda *given: attention_consistency(*(scores.softmax(-1) for scores in given)), (one, other)),
    ]:
        assert torch.autograd.gradcheck(kernel, inputs)
