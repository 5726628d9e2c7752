"""How well pictures show what their prompts say, by the classifier."""

from __future__ import annotations

import numpy as np
from refattention_demo.world import captions, record
from refattention_demo.world.record import Record
from torch import Tensor

from . import attributes
from .classifier import Classifier, read
from .config import HELD_OUT


def prompts(count: int) -> list[tuple[str, Record]]:
    """Held-out sentences that name everything, with their truth."""
    found = []
    for number in range(count):
        rng = np.random.default_rng(HELD_OUT + number)
        shown = record.random_record(rng)
        found.append((captions.caption(shown, rng, captions.EVERYTHING), shown))
    return found


def accuracy(model: Classifier, pictures: Tensor, truth: list[Record]) -> dict[str, float]:
    """The share of pictures (B, 3, H, W) whose attribute is as the prompt says; a second colour only where one is."""
    found = read(model, pictures)
    wanted = [attributes.of_picture(one) for one in truth]
    result = {}
    for name in attributes.ALL:
        counted = [attributes.second_is_seen(one) if name == "second" else True for one in truth]
        right = [a == b[name] for a, b, counts in zip(found[name], wanted, counted, strict=True) if counts]
        result[name] = sum(right) / max(1, len(right))
    return result
