"""Windows, working sizes and pasting: nothing beyond mask and feather changes, whatever the mask and the size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from refattention.core.refine_by_align.match import Box
from refattention.core.refine_by_align.window import Work, artifacts, latent_mask, paste, scaled, window_around
from torch import Tensor


def random_case(seed: int) -> tuple[Tensor, Tensor, int]:
    """A picture of odd or even size, a mask of discs that may touch the border, and a feather."""
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(20, 150, 2))
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(1, 4)):
        centre, radius = (rng.integers(0, height), rng.integers(0, width)), rng.integers(1, 25)
        mask |= (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    picture = torch.from_numpy(rng.random((1, height, width, 3), dtype=np.float32))
    return picture, torch.from_numpy(mask).float(), int(rng.integers(0, 12))


def beyond(mask: Tensor, feather: int) -> Tensor:
    """Pixels whose centre is farther than the feather from the edge, half a pixel off the nearest masked centre."""
    places = torch.nonzero(mask > 0).double()
    every = torch.nonzero(torch.ones_like(mask)).double()
    return torch.cdist(every, places).amin(1).view(mask.shape) >= feather + 0.5


@pytest.mark.parametrize("seed", range(100))
def test_pixels_beyond_mask_and_feather_stay_to_the_bit(seed: int) -> None:
    picture, mask, feather = random_case(seed)
    result = picture
    found = artifacts(mask, Work(context=0.3, size=64, feather=feather), is_together=seed % 2 == 0)
    for one in found:
        painted = torch.rand(1, 64, 72, 3, generator=torch.Generator().manual_seed(seed))
        result = paste(result, painted, one)
    outside = beyond(mask, feather)
    assert torch.equal(result[0][outside], picture[0][outside])
    changed = (result != picture).any(-1)[0]
    assert changed[mask > 0].float().mean() > 0.99
    assert torch.stack([one.region for one in found]).amax(0).equal(mask)


def test_together_or_one_by_one() -> None:
    mask = torch.zeros(100, 200)
    mask[10:20, 10:20] = mask[10:20, 30:40] = mask[70:90, 150:190] = 1
    assert len(artifacts(mask, Work(), is_together=True)) == 1
    near, far = artifacts(mask, Work(), is_together=False)  # 10 pixels apart is one
    assert near.region.sum() == 200 and far.region.sum() == 800
    assert far.window == Box(120, 20, 80, 80)
    assert artifacts(torch.zeros(9, 9), Work(), is_together=False) == []


@pytest.mark.parametrize(
    ("box", "context", "want"),
    [
        (Box(50, 40, 40, 20), 0.5, Box(30, 10, 80, 80)),
        (Box(0, 0, 40, 20), 0.5, Box(0, 0, 80, 80)),
        (Box(180, 90, 20, 10), 1.0, Box(136, 36, 64, 64)),
        (Box(20, 0, 150, 100), 0.5, Box(0, 0, 200, 100)),
    ],
    ids=["middle", "corner", "not smaller than 64", "all of the picture"],
)
def test_window(box: Box, context: float, want: Box) -> None:
    assert window_around(box, context, (100, 200), 64) == want


@pytest.mark.parametrize("context", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(10))
def test_window_holds_the_soft_edge(seed: int, context: float) -> None:
    _, mask, _ = random_case(seed)
    for one in artifacts(mask, Work(context, feather=11), is_together=False):
        cut = one.window.cut(one.weight.unsqueeze(0)) > 0
        assert cut.sum() == (one.weight > 0).sum() and cut.shape[1:] == (one.window.height, one.window.width)


def test_working_size_is_made_of_cells() -> None:
    assert scaled(torch.rand(1, 33, 75, 3), 128).shape == (1, 64, 128, 3)
    assert scaled(torch.rand(1, 301, 200, 3), 256).shape == (1, 256, 168, 3)
    assert scaled(torch.rand(1, 128, 60, 3), 32).shape == (1, 32, 32, 3)  # of an adapter for such small pictures
    picture = torch.rand(1, 128, 64, 3)
    assert torch.equal(scaled(picture, 128), picture)


def test_latents_that_touch_what_is_pasted_are_painted() -> None:
    mask = torch.zeros(64, 64)
    mask[17, 40] = 1
    (one,) = artifacts(mask, Work(feather=0), is_together=True)
    assert torch.nonzero(latent_mask(one, torch.zeros(1, 64, 64, 3))[0, 0]).tolist() == [[2, 5]]
    larger = latent_mask(one, torch.zeros(1, 1024, 1024, 3))[0, 0]  # a pixel of the picture is two latents wide
    assert torch.nonzero(larger).tolist() == [[34, 80], [34, 81], [35, 80], [35, 81]]
    (soft,) = artifacts(mask, Work(feather=8), is_together=True)
    assert latent_mask(soft, torch.zeros(1, 64, 64, 3)).sum() > 4


def test_a_shift_of_colour_by_the_vae_leaves_no_seam() -> None:
    picture = torch.tensor([0.3, 0.5, 0.7]).expand(1, 90, 77, 3).contiguous()
    mask = torch.zeros(90, 77)
    mask[30:60, 20:50] = 1
    (one,) = artifacts(mask, Work(), is_together=True)
    painted = one.window.cut(picture) + torch.tensor([0.05, -0.04, 0.02])
    assert (paste(picture, painted, one) - picture).abs().max() < 1e-6
    (everything,) = artifacts(torch.ones(90, 77), Work(), is_together=True)
    assert (paste(picture, painted.clamp(0, 1), everything) - picture).abs().max() > 0.04  # nothing to go by
