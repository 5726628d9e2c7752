"""The vision encoder: patches of the same character become alike, in one picture and from view to view, all others not.

Most pairs of characters are look-alikes, who differ in their shirts only: so a patch of a face has to know the shirt
below it.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch
from numpy.random import Generator
from refattention_demo.world import record, truth
from refattention_demo.world.draw import picture
from refattention_demo.world.record import Record
from torch import Tensor
from torch.nn import functional as F

from . import loop, state
from .config import HELD_OUT, VISION
from .pictures import tensor
from .vision import SIDE, SIZE, VisionEncoder
from .workers import Worker

TEMPERATURE = 0.1
LOOK_ALIKES = 0.7
# A patch counts for who fills at least this share of it.
PURE = 0.6


def main() -> None:
    """Trains until the budget is spent."""
    worker = Worker("train_vision")
    torch.manual_seed(0)
    rng, model = np.random.default_rng([worker.rank, int(time.time())]), VisionEncoder()

    def loss() -> Tensor:
        return _loss(model, [_pair(rng) for _ in range(VISION.batch)])

    loop.train(worker, loop.Stage("vision", VISION, model, loss, partial(_report, model)))


def _pair(rng: Generator) -> tuple[Record, Record]:
    """Two characters, and the two in another picture."""
    first = record.look_alikes(rng) if rng.random() < LOOK_ALIKES else record.random_record(rng, 2)
    return first, record.another_view(first, rng)


def owners(shown: Record) -> Tensor:
    """(256,): who fills each patch, 1 or 2; 0 for the scene, -1 where it is mixed."""
    cells = truth.layers(shown, 8 * SIDE).owner.reshape(SIDE, 8, SIDE, 8).transpose(0, 2, 1, 3).reshape(SIDE**2, 64)
    shares = np.stack([(cells == owner).mean(-1) for owner in range(3)], -1)
    return torch.from_numpy(np.where(shares.max(-1) >= PURE, shares.argmax(-1), -1))


def _loss(model: VisionEncoder, pairs: list[tuple[Record, Record]]) -> Tensor:
    shown = [one for pair in pairs for one in pair]
    with torch.autocast("cpu", torch.bfloat16):
        features = model(tensor([picture(one, SIZE) for one in shown])).float()
    features = F.normalize(features, dim=-1).unflatten(0, (len(pairs), 2)).flatten(1, 2)
    labels = torch.stack([owners(one) for one in shown]).unflatten(0, (len(pairs), 2)).flatten(1, 2)
    return torch.stack([_contrast(own, label) for own, label in zip(features, labels, strict=True)]).mean()


def _contrast(features: Tensor, labels: Tensor) -> Tensor:
    """Each patch of a character against all others: the share of the similarity that falls to the same character."""
    pure = labels >= 0
    features, labels = features[pure], labels[pure]
    similar = features @ features.T / TEMPERATURE - 1e4 * torch.eye(len(labels))
    same = labels[:, None] == labels
    return -(similar.log_softmax(1).exp() * same).sum(1).clamp_min(1e-6).log()[labels > 0].mean()


@torch.no_grad()
def _report(model: VisionEncoder, used: float, loss: float) -> None:
    """How often a patch of a character is nearer to a random patch of its own than to one of the other character."""
    rng, right = np.random.default_rng(HELD_OUT), []
    for _ in range(40):
        shown = record.look_alikes(rng)
        features, label = F.normalize(model(tensor([picture(shown, SIZE)]))[0], dim=-1), owners(shown)
        first, second = features[label == 1], features[label == 2]
        own, other = first @ first.T, first @ second.T
        right.append((own.mean(1) > other.mean(1)).float().mean().item())
    state.log(loop.curve("vision"), cpu=used, loss=loss, nearer_to_its_own=sum(right) / len(right))


if __name__ == "__main__":
    main()
