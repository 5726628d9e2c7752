"""What the world's adapters are trained on, and how their weights are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refattention_demo.world import expand
from world import data_sets
from world.config import ADAPTERS


@pytest.mark.parametrize("name", sorted({adapter.method for adapter in ADAPTERS.values()}))
def test_a_line_names_pictures_of_one_size(name: str, tmp_path: Path) -> None:
    for number in range(3):
        line = data_sets.MAKERS[name](tmp_path, f"{number:05}", np.random.default_rng(number))
        files = [value for value in line.values() if value.endswith(".png")]
        assert files and {Image.open(tmp_path / file).size for file in files} == {(128, 128)}


def test_packed_weights_differ_by_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(8, 4, 3, 3, generator=generator), "b": torch.randn(8, generator=generator)}
    weights["a"][0] *= 100
    found = expand.unpacked(expand.packed(weights))
    assert found.keys() == weights.keys() and torch.equal(found["b"], weights["b"])
    largest = weights["a"].flatten(1).abs().amax(1)
    assert ((found["a"] - weights["a"]).flatten(1).abs().amax(1) <= largest / 254 + 1e-6).all()
