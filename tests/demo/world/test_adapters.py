"""What the world's adapters are trained on, and how their weights are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refattention_demo.world import draw, expand, record, truth
from world import data_sets, refine_start


@pytest.mark.parametrize("name", sorted(data_sets.MAKERS))
def test_a_line_names_pictures_of_one_size(name: str, tmp_path: Path) -> None:
    for number in range(3):
        line = data_sets.MAKERS[name](tmp_path, f"{number:05}", np.random.default_rng(number))
        files = [value for value in line.values() if value.endswith(".png")]
        assert files and {Image.open(tmp_path / file).size for file in files} == {(128, 128)}


def test_every_place_of_a_quilt_looks_different() -> None:
    shirt = data_sets.quilt(np.random.default_rng(0))
    flat = draw.flat_garment(shirt).astype(float)
    y, x = np.mgrid[36:100:8, 32:96:8].reshape(2, -1)  # of the torso
    apart = np.hypot(y[:, None] - y, x[:, None] - x)
    differs = np.abs(flat[y, x][:, None] - flat[y, x]).sum(-1)
    assert differs[apart > 20].min() > 30 and differs[apart < 9].max() < 90
    other = draw.flat_garment(data_sets.quilt(np.random.default_rng(1))).astype(float)
    assert np.abs(flat - other)[y, x].mean() > 10


def test_counterparts_are_where_the_other_picture_shows_the_same() -> None:
    rng = data_sets.generator("refine", 0)
    shown = data_sets.completed(rng)
    other = record.another_view(shown, rng)
    places = refine_start.counterparts(shown, other)
    first, second = (truth.on_flat_shirt(each)[4::8, 4::8].reshape(-1, 2) for each in (shown, other))
    known = places.reshape(-1) >= 0
    assert 20 < known.sum() < truth.shirt(shown)[4::8, 4::8].sum() + 1
    there = second[places.reshape(-1)[known]]
    seen = ~np.isnan(there).any(1)  # some lie in a cell whose middle is beside the shirt
    assert seen.mean() > 0.8
    # A cell is 8 of 128 pixels, and a shirt about half as wide as the picture.
    assert np.abs(there - first[known])[seen].max() < 0.15
    assert (refine_start.counterparts(shown, None).reshape(-1) == np.arange(256)).all()


def test_answers_and_looks_are_measured() -> None:
    torch.manual_seed(0)
    wanted, known = torch.randn(2, 64, 8), torch.ones(2, 1, 128, 128)
    assert refine_start.not_answered(wanted, wanted, known) == 0
    assert abs(refine_start.not_answered(wanted.mean((0, 1)).expand(2, 64, 8), wanted, known) - 1) < 1e-5
    half = known.clone()
    half[..., :64, :] = 0  # what cannot be known does not count
    spoiled = wanted.clone()
    spoiled[:, :32] += 1
    assert refine_start.not_answered(spoiled, wanted, half) == 0 < refine_start.not_answered(spoiled, wanted, known)

    places = torch.arange(256).view(1, 16, 16).clone()
    keys = torch.nn.functional.one_hot(torch.arange(256)).float()[None]
    assert refine_start.not_looked(keys * 300, keys, 1, places) < 1e-3
    nowhere = refine_start.not_looked(torch.zeros(1, 256, 256), keys, 1, places)
    assert abs(nowhere - np.log(256)) < 1e-2
    places[:, 8:] = -1
    queries = keys * 300
    queries[:, 128:] = 0
    assert refine_start.not_looked(queries, keys, 1, places) < 1e-3


def test_packed_weights_differ_by_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(8, 4, 3, 3, generator=generator), "b": torch.randn(8, generator=generator)}
    weights["a"][0] *= 100
    found = expand.unpacked(expand.packed(weights))
    assert found.keys() == weights.keys() and torch.equal(found["b"], weights["b"])
    largest = weights["a"].flatten(1).abs().amax(1)
    assert ((found["a"] - weights["a"]).flatten(1).abs().amax(1) <= largest / 254 + 1e-6).all()
