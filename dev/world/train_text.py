"""Before the U-Net: the text encoder learns to say at every place after a caption's end what the caption named.

So a U-Net that does not look anywhere in particular yet receives all attributes, each bound to its figure, and need not
learn to read and to paint at the same time.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch
from numpy.random import Generator
from refattention_demo.world.captions import caption, spoken
from torch import Tensor, nn
from torch.nn import functional as F

from . import attributes, loop, state
from .config import HELD_OUT, TEXT
from .pictures import numbered
from .text import SIZE, TextEncoder, tokens
from .workers import Worker

SLOTS = [f"{place} {name}" for place in ("first", "second") for name in attributes.FIGURE] + list(attributes.PICTURE)
VALUES = [values for _ in range(2) for values in attributes.FIGURE.values()] + list(attributes.PICTURE.values())


class Reader(nn.Module):
    """One linear answer for each attribute; the last class is "not named"."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(SIZE.hidden, len(values) + 1) for values in VALUES])

    def forward(self, place: Tensor) -> list[Tensor]:
        """(B, D) -> (B, values + 1) for each attribute."""
        return [head(place) for head in self.heads]


class ReadingEncoder(nn.Module):
    """The text encoder and what it is asked while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.reader = TextEncoder(), Reader()

    def forward(self, numbers: Tensor) -> list[Tensor]:
        """Captions (B, 77) -> answers at a random place after each one's end."""
        hidden = self.encoder(numbers)
        length = (numbers != 1).sum(1)
        place = length + (torch.rand(len(numbers)) * (SIZE.positions - length)).long()
        return self.reader(hidden[torch.arange(len(numbers)), place])


def main() -> None:
    """Trains until the budget is spent."""
    worker = Worker("train_text")
    torch.manual_seed(0)
    rng, model = np.random.default_rng([worker.rank, int(time.time())]), ReadingEncoder()

    def loss() -> Tensor:
        captions, answers = _examples(rng, TEXT.batch)
        return torch.stack([F.cross_entropy(*pair) for pair in zip(model(captions), answers.T, strict=True)]).sum()

    loop.train(worker, loop.Stage("text", TEXT, model, loss, partial(_report, model)))


def trained() -> TextEncoder:
    """The trained text encoder."""
    model = ReadingEncoder()
    model.load_state_dict(loop.trained("text"))
    return model.encoder


def _examples(rng: Generator, count: int) -> tuple[Tensor, Tensor]:
    captions, answers = [], []
    for _ in range(count):
        caption, named = _example(rng)
        captions.append(tokens(caption))
        answers.append(named)
    return torch.tensor(captions), torch.tensor(answers)


def _example(rng: Generator) -> tuple[str, list[int]]:
    """A caption, and for each attribute the number of the value that it names."""
    picture = numbered(int(rng.integers(10**8)))
    sentence = caption(picture, rng)
    named = spoken(sentence)
    return sentence, [
        values.index(named[slot]) if slot in named else len(values) for slot, values in zip(SLOTS, VALUES, strict=True)
    ]


@torch.no_grad()
def _report(model: ReadingEncoder, used: float, loss: float) -> None:
    captions, answers = _examples(np.random.default_rng(HELD_OUT), 512)
    right = [
        (answer.argmax(1) == truth).float().mean().item()
        for answer, truth in zip(model(captions), answers.T, strict=True)
    ]
    state.log(loop.curve("text"), cpu=used, loss=loss, worst=min(right), mean=sum(right) / len(right))


if __name__ == "__main__":
    main()
