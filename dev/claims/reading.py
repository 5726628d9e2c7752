"""What is read from pictures: attributes, by the world's classifier, and colours."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from refattention_demo.world import draw
from refattention_demo.world.record import Record
from world import attributes, classifier
from world.pictures import to_batch

# Where figures that fill the frame have shirt and face: top, bottom, left, right in pixels of 128.
SHIRT_BOX, FACE_BOX = (76, 112, 44, 84), (26, 56, 44, 84)
Chances = dict[str, NDArray[np.float32]]


class NotHereError(Exception):
    """What a group of rows is measured on is not on this machine."""


def require(*files: Path) -> None:
    """Checks that what `world.train_adapters` makes is there.

    Raises:
        NotHereError: names the files that are missing.
    """
    missing = [each.name for each in files if not each.exists()]
    if missing:
        raise NotHereError(f"needs {', '.join(missing)} of `python -m world.train_adapters`")


class Reader:
    """The classifier, on pictures (B, H, W, 3) in [0, 1]."""

    def __init__(self) -> None:
        self.model = classifier.trained()

    @torch.no_grad()
    def chances(self, pictures: NDArray[np.float32]) -> Chances:
        """(B, values) of each attribute."""
        scores = self.model(classifier.seen(to_batch(pictures)))
        return {name: score.softmax(1).numpy() for name, score in scores.items()}

    def of(self, chances: Chances, name: str, shown: Record) -> NDArray[np.float32]:
        """(B,): the chance of the attribute that a record has."""
        return chances[name][:, attributes.ALL[name].index(attributes.of_picture(shown)[name])]

    def of_each(self, chances: Chances, name: str, shown: list[Record]) -> NDArray[np.float64]:
        """(B,): the chance of each picture that it has the attribute of its own record."""
        return np.array([self.of(chances, name, record)[number] for number, record in enumerate(shown)], float)


def drawn(record: Record) -> NDArray[np.float32]:
    """(H, W, 3) in [0, 1]: the right picture."""
    return np.asarray(draw.picture(record).astype(np.float32) / 255)


def colour(picture: NDArray[np.float32], box: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """The median colour inside a box, L, a and b."""
    top, bottom, left, right = box
    lab = cv2.cvtColor(np.ascontiguousarray(picture[top:bottom, left:right]), cv2.COLOR_RGB2LAB)
    return np.asarray(np.median(lab.reshape(-1, 3), 0))


def distance(first: NDArray[np.float32], second: NDArray[np.float32], box: tuple[int, int, int, int]) -> float:
    """CIE76 colour distance of the median colours inside a box."""
    return float(np.linalg.norm(colour(first, box) - colour(second, box)))
