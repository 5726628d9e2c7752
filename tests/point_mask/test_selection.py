"""Point masks on features whose regions are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from refattention.core.kernels.grid import layout
from refattention.core.point_mask.frames import missed_points
from refattention.core.point_mask.kernel import similarity
from refattention.core.point_mask.selection import Refinement, Selection, discs, fill, similar_regions

SIDE, PATCH = 24, 7
SUBJECT, LOOK_ALIKE, BACKGROUND = range(3)


def label_map() -> np.ndarray:
    """Two blocks that touch, on a background."""
    labels = np.full((SIDE, SIDE), BACKGROUND)
    labels[5:19, 4:12], labels[5:19, 12:20] = SUBJECT, LOOK_ALIKE
    return labels


def synthetic(noise: float, seed: int = 0, width: int = 256) -> torch.Tensor:
    """Features with cosine 0.9 between subject and look-alike, 0.2 from both to the background, plus noise."""
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.standard_normal((width, 3)))
    similarities = np.array([[1, 0.9, 0.2], [0.9, 1, 0.2], [0.2, 0.2, 1]])
    directions = np.linalg.cholesky(similarities) @ axes.T
    features = directions[label_map()] + noise * rng.standard_normal((SIDE, SIDE, width)) / math.sqrt(width)
    return torch.from_numpy(features).float()


PLAN = layout(SIDE * PATCH, SIDE * PATCH, "stretch", SIDE, PATCH)
ON_SUBJECT, ON_LOOK_ALIKE, ON_BACKGROUND = (7 * PATCH, 11 * PATCH), (16 * PATCH, 12 * PATCH), (2 * PATCH, 2 * PATCH)


def at_patches(mask: torch.Tensor) -> np.ndarray:
    """The mask at the patches' centres."""
    return (mask[PATCH // 2 :: PATCH, PATCH // 2 :: PATCH] >= 0.5).numpy()


def overlap(found: np.ndarray, wanted: np.ndarray) -> float:
    return (found & wanted).sum() / (found | wanted).sum()


def test_synthetic_features_have_the_cosines_they_promise() -> None:
    near = similarity(synthetic(0.0), [PLAN.patch_of(*ON_SUBJECT)])
    for labels, cosine in ((SUBJECT, 1.0), (LOOK_ALIKE, 0.9), (BACKGROUND, 0.2)):
        assert torch.allclose(near[torch.from_numpy(label_map() == labels)], torch.tensor(cosine), atol=1e-5)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_two_points_separate_look_alikes(noise: float, seed: int) -> None:
    features, labels = synthetic(noise, seed), label_map()
    chosen = similar_regions(features, PLAN, [ON_SUBJECT], [ON_LOOK_ALIKE], Refinement())
    assert overlap(at_patches(chosen.mask), labels == SUBJECT) >= 0.95
    opposite = similar_regions(features, PLAN, [ON_LOOK_ALIKE], [ON_SUBJECT], Refinement())
    assert overlap(at_patches(opposite.mask), labels == LOOK_ALIKE) >= 0.95


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_without_the_negative_point_both_come(noise: float) -> None:
    chosen = similar_regions(synthetic(noise), PLAN, [ON_SUBJECT], [], Refinement())
    assert overlap(at_patches(chosen.mask), label_map() != BACKGROUND) >= 0.95


def test_raw_cosines_prefer_the_background() -> None:
    """Why the maps are rescaled: 1 x (1 - 0.9) on the subject is less than 0.2 x (1 - 0.2) on the background."""
    chosen = similar_regions(synthetic(0.0), PLAN, [ON_SUBJECT], [ON_LOOK_ALIKE], Refinement(rescale=False))
    (x, y), (left, top) = ON_SUBJECT, ON_BACKGROUND
    assert chosen.score[y, x] < chosen.score[top, left]


def test_only_regions_with_a_point_are_kept() -> None:
    features = synthetic(0.0)
    features[10:13, 11:13] = features[0, 0]  # a gap that leaves bridges above and below
    features[:, 12:14] = features[0, 0]
    one = at_patches(similar_regions(features, PLAN, [ON_SUBJECT], [], Refinement(smoothing=0)).mask)
    both = similar_regions(features, PLAN, [ON_SUBJECT, ON_LOOK_ALIKE], [], Refinement(smoothing=0))
    assert one[11, 5] and not one[11, 17]
    assert at_patches(both.mask)[11, 5] and at_patches(both.mask)[11, 17] and both.missed == ()


def test_missed_points_are_numbered() -> None:
    chosen = similar_regions(synthetic(0.0), PLAN, [ON_SUBJECT, ON_SUBJECT], [], Refinement(threshold=0.5))
    assert chosen.missed == ()
    chosen = similar_regions(
        synthetic(0.0), PLAN, [ON_SUBJECT], [ON_LOOK_ALIKE], Refinement(threshold=0.8, rescale=False)
    )
    assert chosen.missed == (1,) and not chosen.mask.any()


def test_missed_points_are_told_with_what_to_do() -> None:
    size = (4, 4)
    hit = Selection(torch.ones(size), torch.ones(size), 0.3)
    missed = Selection(torch.ones(size), torch.ones(size), 0.49, (2,))
    assert missed_points([(hit, hit)]) == ""
    assert missed_points([(missed, hit)]) == (
        "The mask does not reach positive 2: set threshold below 0.49, or move the point."
    )
    assert missed_points([(hit, missed), (hit, missed)]) == "negative_mask does not reach negative 2."


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_fixed_threshold_is_a_share_of_the_range(threshold: float) -> None:
    chosen = similar_regions(synthetic(0.3), PLAN, [ON_SUBJECT], [], Refinement(threshold=threshold))
    assert chosen.threshold == threshold
    assert ((chosen.mask == 1) <= (chosen.score >= threshold)).all()
    assert 0 <= chosen.score.min() and chosen.score.max() <= 1


def test_no_points_select_nothing() -> None:
    chosen = similar_regions(synthetic(0.0), PLAN, [], [ON_SUBJECT], Refinement())
    assert not chosen.mask.any() and not chosen.score.any()


def test_the_same_everywhere_selects_nothing() -> None:
    chosen = similar_regions(torch.ones(SIDE, SIDE, 8), PLAN, [ON_SUBJECT], [], Refinement())
    assert not chosen.mask.any() and chosen.missed == (1,)


def test_discs_share_the_ground_between_the_signs() -> None:
    size, plus, minus, radius = (20, 30), [(8, 9)], [(14, 9)], 6
    mask = discs(size, plus, minus, radius, Refinement()).mask
    for y in range(20):
        for x in range(30):
            own, other = math.dist((x, y), plus[0]), math.dist((x, y), minus[0])
            assert mask[y, x] == float(own <= radius and own <= other)


def test_fill_leaves_the_rest_bit_identical() -> None:
    image = torch.rand(37, 53, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(37, 53)
    mask[10:20, 10:20], mask[20, 10:20] = 1, 0.5
    filled = fill(image, mask)
    assert torch.equal(filled[mask == 0], image[mask == 0])
    assert not torch.equal(filled[mask == 1], image[mask == 1])
    assert fill(image, torch.zeros(37, 53)) is image
