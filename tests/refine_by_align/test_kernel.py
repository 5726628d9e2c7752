"""Alignment kernels against the full softmax in float64, whatever the chunk."""

from __future__ import annotations

import oracle
import pytest
import torch
from refattention.core.kernels.attention import AttentionLayer
from refattention.core.refine_by_align import kernel as align
from torch import Tensor

B, HEADS, GRID, REFERENCE = 2, 3, (5, 4), (3, 6)
N, M = 20, 18


@pytest.fixture
def layer() -> AttentionLayer:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(B, tokens, HEADS * 4, generator=generator) * 2 for tokens in (N, M))
    return AttentionLayer(q, k, HEADS, GRID, REFERENCE)


def full_map(layer: AttentionLayer) -> Tensor:
    """(B, N, M), mean over heads."""
    maps = [oracle.scores(q, k, layer.heads).exp() for q, k in zip(layer.q, layer.k, strict=True)]
    return torch.stack([(one / one.sum(-1, keepdim=True)).mean(0) for one in maps])


@pytest.mark.parametrize("most", [1, 7 * B * HEADS * M, 1 << 22], ids=["one row", "7 rows", "all"])
def test_equals_the_full_softmax(layer: AttentionLayer, most: int) -> None:
    groups = torch.rand(3, N, generator=torch.Generator().manual_seed(1))
    groups[:, ::3] = 0
    got = align.attention_to_reference(layer, groups, most=most)
    want = groups.double() @ full_map(layer).mean(0)
    assert (got - want).abs().max() < 1e-6
    assert torch.allclose(got.sum(1), groups.sum(1))


def test_never_more_of_the_map_than_stated(layer: AttentionLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = align.attention_map
    monkeypatch.setattr(align, "attention_map", lambda *a: sizes.append((m := real(*a)).numel()) or m)
    groups = torch.zeros(1, N)
    groups[0, 4:15] = 1
    align.attention_to_reference(layer, groups, most=4 * B * HEADS * M)
    assert [size // (B * HEADS * M) for size in sizes] == [4, 4, 3]  # and nothing for queries without weight


def test_half_precision_is_compared_in_full(layer: AttentionLayer) -> None:
    half = AttentionLayer(layer.q.half(), layer.k.half(), HEADS, GRID, REFERENCE)
    full = AttentionLayer(half.q.float(), half.k.float(), HEADS, GRID, REFERENCE)
    groups = torch.eye(N)
    assert torch.equal(align.attention_to_reference(half, groups), align.attention_to_reference(full, groups))


def test_group_of_mask_holds_the_covered_tokens() -> None:
    mask = torch.zeros(10, 8)
    mask[2:6, 2:8] = 1
    group = align.group_of_mask(mask, GRID).view(GRID)
    want = torch.zeros(GRID)
    want[1:3, 1:4] = 1 / 6
    assert torch.equal(group, want)
    mask[:] = 0
    mask[9, 7] = 1
    assert align.group_of_mask(mask, GRID).view(GRID)[4, 3] == 1


def test_groups_of_points() -> None:
    points = [(0, 0), (7, 9), (4, 2), (3, 2)]
    groups = align.groups_of_points(points, (10, 8), GRID).view(-1, *GRID)
    assert [tuple(torch.nonzero(group)[0].tolist()) for group in groups] == [(0, 0), (4, 3), (1, 2), (1, 1)]
    assert groups.sum() == len(points)


def test_mean_map_is_on_the_finest_grid() -> None:
    coarse, fine = torch.tensor([[[0.0, 4.0]]]), torch.ones(1, 2, 4)
    want = (torch.tensor([0.0, 1.0, 3.0, 4.0]) + 1) / 2
    assert torch.allclose(align.mean_map([coarse, fine]), want.expand(1, 2, 4))


def test_completion_counts_masked_places_of_each_sample_alike() -> None:
    generator = torch.Generator().manual_seed(2)
    predicted, noise = torch.randn(2, 3, 4, 5, 6, generator=generator)
    mask = (torch.rand(3, 1, 5, 6, generator=generator) > 0.6).float()
    samples = []
    for sample in range(3):
        places = [(y, x) for y in range(5) for x in range(6) if mask[sample, 0, y, x]]
        errors = [(predicted[sample, :, y, x].double() - noise[sample, :, y, x].double()) ** 2 for y, x in places]
        samples.append(torch.stack(errors).mean())
    assert len({int(one.sum()) for one in mask}) > 1
    assert align.completion_loss(predicted, noise, mask).item() == pytest.approx(torch.stack(samples).mean().item())
