"""Similarity to points, against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from refattention.core.kernels.maps import rescale
from refattention.core.point_mask.kernel import contrast, distance, similarity


def cosine(a: list[float], b: list[float]) -> float:
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_similarity_is_the_largest_cosine(dtype: torch.dtype) -> None:
    features = (torch.randn(5, 7, 33, generator=torch.Generator().manual_seed(1)) * 30).to(dtype)
    patches = [(0, 0), (4, 6), (2, 3)]
    vectors = features.double().tolist()
    want = [
        [max(cosine(vectors[row][column], vectors[r][c]) for r, c in patches) for column in range(7)]
        for row in range(5)
    ]
    assert (similarity(features, patches).double() - torch.tensor(want, dtype=torch.float64)).abs().max() < 1e-5


def test_rescale_reaches_from_0_to_1() -> None:
    values = torch.tensor([[3.0, -1.0], [0.0, 1.0]])
    assert torch.equal(rescale(values), torch.tensor([[1.0, 0.0], [0.25, 0.5]]))
    assert torch.equal(rescale(torch.full((2, 2), 0.7)), torch.zeros(2, 2))


def test_contrast() -> None:
    wanted, unwanted = torch.tensor([0.9, 0.5, -0.2]), torch.tensor([0.25, 1.0, -1.0])
    assert torch.allclose(contrast(wanted, unwanted), torch.tensor([0.675, 0.0, -0.4]))
    assert torch.equal(contrast(wanted, None), wanted)


def test_distance() -> None:
    points, size = [(0, 0), (8, 3), (8, 3), (2, 5)], (6, 9)
    want = [[min(math.hypot(x - px, y - py) for px, py in points) for x in range(9)] for y in range(6)]
    assert (distance(points, size) - torch.tensor(want)).abs().max() < 1e-6
    assert torch.isinf(distance([], size)).all()
