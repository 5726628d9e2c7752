"""Before the U-Net: the text encoder learns to say at every place after a caption's end what the caption named.

So a U-Net that does not look anywhere in particular yet receives all attributes, each bound to its figure, and need not
learn to read and to paint at the same time.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn

from demo.world.captions import caption, spoken

from . import attributes, state
from .config import STATE, TEXT
from .pictures import numbered
from .text import SIZE, TextEncoder, tokens
from .workers import Clock, Worker

CHECKPOINT, CURVE = STATE / "text.pt", STATE / "curves" / "text.jsonl"
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


def main() -> None:
    """Trains until the budget is spent."""
    worker = Worker("train_text")
    if CHECKPOINT.exists():
        return
    torch.manual_seed(0)
    rng = np.random.default_rng(worker.rank)
    encoder, reader = TextEncoder(), Reader()
    weights = [*encoder.parameters(), *reader.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=0.0, betas=(0.9, 0.98), weight_decay=1e-3)
    clock, reported = Clock(worker, TEXT), 0.0
    while not clock.is_over:
        for group in optimiser.param_groups:
            group["lr"] = clock.rate()
        captions, answers = _examples(rng, TEXT.batch)
        loss = sum(
            nn.functional.cross_entropy(*pair) for pair in zip(_read(encoder, reader, captions), answers.T, strict=True)
        )
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        if clock.meet(weights) and clock.used - reported > TEXT.report_every and worker.leads:
            reported = clock.used
            _report(encoder, reader, clock.used, loss.item())
    if worker.leads:
        _report(encoder, reader, clock.used, loss.item())
        state.save(CHECKPOINT, {"model": encoder.state_dict()})


def _read(encoder: TextEncoder, reader: Reader, numbers: Tensor) -> list[Tensor]:
    hidden = encoder(numbers)
    length = (numbers != 1).sum(1)
    place = length + (torch.rand(len(numbers)) * (SIZE.positions - length)).long()
    return reader(hidden[torch.arange(len(numbers)), place])


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
def _report(encoder: TextEncoder, reader: Reader, used: float, loss: float) -> None:
    captions, answers = _examples(np.random.default_rng(1), 512)
    right = [
        (answer.argmax(1) == truth).float().mean().item()
        for answer, truth in zip(_read(encoder, reader, captions), answers.T, strict=True)
    ]
    state.log(CURVE, cpu=used, loss=loss, worst=min(right), mean=sum(right) / len(right))


if __name__ == "__main__":
    main()
