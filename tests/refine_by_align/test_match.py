"""From map to box, and the whole way on features whose correspondence is known."""

from __future__ import annotations

import pytest
import torch
from boxes import overlap
from refattention.core.kernels.attention import AttentionLayer
from refattention.core.refine_by_align.kernel import attention_to_reference, group_of_mask, mean_map
from refattention.core.refine_by_align.match import Box, Finding, Match, bounding_box, find, grown
from torch import Tensor
from torch.nn import functional as F

TIGHT = Finding(margin=0.0)
CELL = 8  # pixels of a token


def test_main_component_is_the_one_with_most_attention_not_the_largest() -> None:
    attention = torch.zeros(20, 30)
    attention[2:4, 2:14], attention[10:14, 20:25] = 1.0, 4.0
    found = find(attention, (160, 240), Finding(threshold=0.2, margin=0.0, smoothing=0.0))
    assert overlap(found.box, Box(160, 80, 40, 32)) > 0.75
    assert found.is_match and found.contrast > 10
    assert not found.region[:40].any()
    assert found.heat.shape == found.region.shape == (160, 240)


def test_margin_stays_on_the_picture() -> None:
    assert grown(Box(5, 0, 20, 10), 0.5, (40, 28)) == Box(0, 0, 28, 20)
    region = torch.zeros(9, 9, dtype=torch.bool)
    region[3:5, 4:8] = True
    assert bounding_box(region.numpy()) == Box(4, 3, 4, 2)


@pytest.mark.parametrize("attention", [torch.ones(8, 8), torch.zeros(8, 8), torch.ones(1, 1)], ids=["1", "0", "cell"])
def test_a_flat_map_is_no_match(attention: Tensor) -> None:
    found = find(attention, (50, 41), Finding())
    assert not found.is_match and found.box == Box(0, 0, 41, 50)
    assert find(attention, (50, 41), Finding(minimum_contrast=0.0)).is_match


def scene(seed: int) -> tuple[list[AttentionLayer], Tensor, Box]:
    """Two grids of tokens with random content; a patch of the picture is somewhere in the reference, scaled 0.5 to 2.

    Returns:
        layers, the mask of the patch in the picture in cells, and the place of the patch in the reference in pixels.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    side, channels, heads = 48, 64, 2
    height, width = uniform(12, 20), uniform(12, 20)
    scale = 0.5 + 1.5 * (seed % 50) / 49
    rows, columns = round(height * scale), round(width * scale)
    y, x = uniform(0, side - height), uniform(0, side - width)
    v, u = uniform(0, side - rows), uniform(0, side - columns)
    picture, reference = (torch.randn(1, channels, side, side, generator=generator) for _ in range(2))
    patch = torch.randn(1, channels, 6, 6, generator=generator)
    picture[..., y : y + height, x : x + width] = F.interpolate(patch, (height, width), mode="bilinear")
    reference[..., v : v + rows, u : u + columns] = F.interpolate(patch, (rows, columns), mode="bilinear")
    mask = torch.zeros(side, side)
    mask[y : y + height, x : x + width] = 1
    layers = []
    for _ in range(2):  # the same content with another noise in each layer
        q, k = (
            F.layer_norm((each + 0.5 * torch.randn(each.shape, generator=generator)).flatten(2).mT, [channels]) * 1.5
            for each in (picture, reference)
        )
        layers.append(AttentionLayer(q, k, heads, (side, side), (side, side)))
    return layers, mask, Box(u * CELL, v * CELL, columns * CELL, rows * CELL)


def look(layers: list[AttentionLayer], mask: Tensor) -> Match:
    maps = []
    for layer in layers:
        seen = attention_to_reference(layer, group_of_mask(mask, layer.grid)) * layer.k.shape[1]
        maps.append(seen.unflatten(-1, layer.reference_grid))
    return find(mean_map(maps)[0], tuple(CELL * side for side in layers[0].reference_grid), TIGHT)


@pytest.mark.parametrize("seed", range(50))
def test_known_correspondence_is_found(seed: int) -> None:
    layers, mask, place = scene(seed)
    found = look(layers, mask)
    assert overlap(found.box, place) >= 0.9, (found.box, place)
    assert found.is_match


@pytest.mark.parametrize("seed", range(5))
def test_a_reference_without_the_patch_is_no_match(seed: int) -> None:
    layers, mask, _ = scene(seed)
    other, _, _ = scene(100 + seed)
    strangers = [AttentionLayer(a.q, b.k, a.heads, a.grid, b.grid) for a, b in zip(layers, other, strict=True)]
    assert not look(strangers, mask).is_match
