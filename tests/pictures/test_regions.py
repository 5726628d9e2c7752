"""Every OpenCV step against a loop that says what it should do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from refattention.core.pictures import regions


def random_region(seed: int, shape: tuple[int, int] = (23, 31), share: float = 0.45) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


@pytest.mark.parametrize("sigma", [0.4, 0.7, 1.5])
def test_smooth_is_a_gaussian(sigma: float) -> None:
    values = np.random.default_rng(3).random((9, 13)).astype(np.float32)
    reach = 12
    kernel = np.array([math.exp(-(d**2) / (2 * sigma**2)) for d in range(-reach, reach + 1)])
    kernel /= kernel.sum()
    wide = np.pad(values.astype(np.float64), reach, mode="edge")
    want = np.zeros(values.shape)
    for y, x in np.ndindex(values.shape):
        want[y, x] = kernel @ wide[y : y + 2 * reach + 1, x : x + 2 * reach + 1] @ kernel
    # OpenCV cuts the bell where it has fallen below about 1 % of its height.
    assert np.abs(regions.smooth(values, sigma) - want).max() < 0.01
    assert np.array_equal(regions.smooth(values, 0.0), values)


def otsu_by_trying(values: np.ndarray) -> set[int]:
    """All highest steps outside that give the largest variance between the two classes."""
    steps = np.rint(values * 255).astype(int).ravel()
    variances = {}
    for step in range(255):
        low, high = steps[steps <= step], steps[steps > step]
        if len(low) and len(high):
            variances[step] = len(low) * len(high) * (low.mean() - high.mean()) ** 2
    best = max(variances.values())
    return {step for step, variance in variances.items() if variance > best * (1 - 1e-9)}


@pytest.mark.parametrize("seed", range(5))
def test_otsu_splits_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.clip(np.where(rng.random((16, 16)) < 0.3, 0.7, 0.2) + 0.12 * rng.standard_normal((16, 16)), 0, 1)
    threshold = regions.otsu_threshold(values.astype(np.float32))
    assert round(threshold * 255 - 0.5) in otsu_by_trying(values.astype(np.float32))


def flood(region: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    found, todo = np.zeros_like(region), [tuple(seed) for seed in np.argwhere(seeds & region)]
    while todo:
        y, x = todo.pop()
        if 0 <= y < region.shape[0] and 0 <= x < region.shape[1] and region[y, x] and not found[y, x]:
            found[y, x] = True
            todo += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return found


@pytest.mark.parametrize("seed", range(8))
def test_connected_is_a_flood_from_the_seeds(seed: int) -> None:
    region, seeds = random_region(seed, share=0.35), random_region(seed + 100, share=0.01)
    assert np.array_equal(regions.connected(region, seeds), flood(region, seeds))
    assert not regions.connected(region, np.zeros_like(region)).any()


def components(region: np.ndarray) -> list[np.ndarray]:
    found, rest = [], region.copy()
    while rest.any():
        seed = np.zeros_like(rest)
        seed[tuple(np.argwhere(rest)[0])] = True
        found.append(flood(rest, seed))
        rest &= ~found[-1]
    return found


@pytest.mark.parametrize("area", [0, 1, 6, 40])
def test_without_small(area: int) -> None:
    region = random_region(11)
    for inside in (True, False):
        for each in components(region if inside else ~region):
            if each.sum() < area:
                region = region & ~each if inside else region | each
    assert np.array_equal(regions.without_small(random_region(11), area), region)


def nearest(region: np.ndarray, y: int, x: int) -> float:
    places = np.argwhere(region)
    return np.sqrt(((places - (y, x)) ** 2).sum(1)).min() if len(places) else np.inf


@pytest.mark.parametrize("pixels", [0, 1, 3, -1, -2])
def test_grow_moves_the_edge(pixels: int) -> None:
    region = flood(random_region(5, share=0.7), random_region(6, share=0.2))
    want = region.copy()
    for y, x in np.ndindex(region.shape):
        # The edge lies half a pixel before the next pixel's centre.
        if pixels > 0:
            want[y, x] = nearest(region, y, x) - 0.5 < pixels
        elif pixels < 0:
            want[y, x] = nearest(~region, y, x) - 0.5 > -pixels
    assert np.array_equal(regions.grow(region, pixels), want)


def test_feather_is_a_ramp_across_the_edge() -> None:
    region = np.zeros((5, 40), bool)
    region[:, 20:] = True
    assert np.array_equal(regions.feather(region, 0), region.astype(np.float32))
    ramp = regions.feather(region, 8)[2]
    want = np.clip(0.5 + (np.arange(40) - 19.5) / 8, 0, 1)
    assert np.abs(ramp - want).max() < 1e-6


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize(("grow", "feather"), [(0, 0), (5, 0), (-5, 0), (0, 5)])
def test_a_region_without_edge_stays(value: bool, grow: int, feather: int) -> None:
    region = np.full((7, 9), value)
    assert (regions.feather(regions.grow(region, grow), feather) == value).all()


@pytest.mark.parametrize("shape", [(40, 60), (700, 900)])
def test_inpaint_fills_with_what_is_around(shape: tuple[int, int]) -> None:
    image = np.zeros((*shape, 3), np.float32)
    image[..., 0], image[..., 1] = 0.25, np.linspace(0, 1, shape[1], dtype=np.float32)
    hole = np.zeros(shape, bool)
    hole[shape[0] // 3 : shape[0] // 2, shape[1] // 3 : shape[1] // 2] = True
    spoiled = image.copy()
    spoiled[hole] = (1, 0, 1)
    filled = regions.inpaint(spoiled, hole)
    assert filled.shape == image.shape
    assert np.abs(filled - image)[hole].max() < 0.12
    assert np.abs(filled - image)[hole].mean() < 0.03


def test_heat_map_goes_from_dark_to_bright() -> None:
    colours = regions.heat_map(np.linspace(0, 1, 64, dtype=np.float32)[None])[0]
    assert colours.shape == (64, 3) and 0 <= colours.min() and colours.max() <= 1
    assert (np.diff(colours @ (0.2126, 0.7152, 0.0722)) >= -0.002).all()
    assert colours[0] @ (1, 1, 1) < 0.9 < 1.7 < colours[-1] @ (1, 1, 1)


@pytest.mark.parametrize("seed", range(4))
def test_components_and_the_main_one(seed: int) -> None:
    region = random_region(seed, share=0.2)
    values = np.random.default_rng(seed).random(region.shape).astype(np.float32)
    parts = regions.components(region)
    assert np.array_equal(np.sum(parts, axis=0), region.astype(int))
    for part in parts:
        first = np.zeros_like(region)
        first[tuple(np.argwhere(part)[0])] = True
        assert np.array_equal(part, flood(region, first))
    largest = max(parts, key=lambda part: values[part].sum())
    assert np.array_equal(regions.main_component(region, values), largest)


def test_an_empty_region_has_no_components() -> None:
    empty = np.zeros((5, 7), bool)
    assert regions.components(empty) == [] and not regions.main_component(empty, np.ones((5, 7), np.float32)).any()
