"""Reads attributes from pictures: the measure of everything that the world's models paint."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from refattention_demo.world import models, record
from refattention_demo.world.draw import picture
from safetensors.torch import load_file
from torch import Tensor, nn

from . import attributes, loop, state
from .autoencoder import Autoencoder
from .config import CLASSIFIER, HELD_OUT
from .device import placed
from .encode import autoencoder
from .pictures import tensor
from .workers import Worker

SIZE, WIDTHS = 64, (32, 64, 96, 128)


class Classifier(nn.Module):
    """Pictures (B, 3, 64, 64) in [0, 1] of one figure -> scores of each attribute's values."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in WIDTHS:
            layers += [nn.Conv2d(before, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.1))
        self.mixed = nn.Linear(16 * before, 192)
        self.heads = nn.ModuleDict({name: nn.Linear(192, len(values)) for name, values in attributes.ALL.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Scores before the softmax."""
        hidden = F.relu(self.mixed(self.body((pictures - 0.5) * 4)))
        return {name: head(hidden) for name, head in self.heads.items()}


def trained() -> Classifier:
    """The trained classifier: the one in training, or else the one that the demo has."""
    model = Classifier().eval()
    own = loop.checkpoint("classifier").exists()
    model.load_state_dict(loop.trained("classifier") if own else load_file(models.FOLDER / models.CLASSIFIER))
    return model


@torch.no_grad()
def read(model: Classifier, pictures: Tensor) -> dict[str, list[str]]:
    """The attributes of pictures (B, 3, H, W) in [0, 1] by their values' names."""
    scores = model(seen(pictures))
    return {name: [attributes.ALL[name][index] for index in score.argmax(1).tolist()] for name, score in scores.items()}


def seen(pictures: Tensor) -> Tensor:
    """Pictures of any size at the size that the classifier sees."""
    return F.interpolate(pictures.float(), size=(SIZE, SIZE), mode="area")


def main() -> None:
    """Trains until the budget is spent, on pictures as drawn and as the autoencoder gives them back."""
    worker = Worker("classifier")
    torch.manual_seed(0)
    model, codec = placed(Classifier()), autoencoder()
    rng = np.random.default_rng([worker.rank, int(time.time())])

    def loss() -> Tensor:
        pictures, answers, coloured = _examples(rng, CLASSIFIER.batch)
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(_spoiled(pictures, codec).contiguous(memory_format=torch.channels_last))
        return _loss(scores, answers, coloured)

    loop.train(worker, loop.Stage("classifier", CLASSIFIER, model, loss, partial(_report, model, codec)))


def _examples(rng: Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures of one figure, their attributes, and whether the shirt's second colour is there."""
    records = [record.random_record(rng) for _ in range(count)]
    pictures = tensor([picture(one) for one in records])
    answers = torch.tensor([attributes.numbers(one) for one in records])
    return pictures, answers, torch.tensor([attributes.second_is_seen(one) for one in records])


def _loss(scores: dict[str, Tensor], answers: Tensor, coloured: Tensor) -> Tensor:
    total = torch.zeros(())
    for (name, score), truth in zip(scores.items(), answers.T, strict=True):
        if name == "second":
            score, truth = score[coloured], truth[coloured]
        total = total + F.cross_entropy(score.float(), truth, label_smoothing=0.05)
    return total


@torch.no_grad()
def _spoiled(pictures: Tensor, codec: Autoencoder) -> Tensor:
    """An eighth through the autoencoder with noise in the latents, as sampling leaves it; all blurred and noisy."""
    eighth = len(pictures) // 8
    decoded = there_and_back(pictures[:eighth], codec, 0.3 * torch.rand(eighth, 1, 1, 1))
    pictures = seen(torch.cat([decoded, pictures[eighth:]]))
    coarse = F.avg_pool2d(pictures, 3, 1, 1, count_include_pad=False)
    pictures = torch.lerp(pictures, coarse, torch.rand(len(pictures), 1, 1, 1))
    pictures = pictures + 0.08 * torch.rand(len(pictures), 1, 1, 1) * torch.randn_like(pictures)
    return pictures.roll(torch.randint(-3, 4, (2,)).tolist(), (2, 3))


@torch.no_grad()
def there_and_back(pictures: Tensor, codec: Autoencoder, noise: Tensor | float = 0.0) -> Tensor:
    """Pictures after the autoencoder, with noise of that strength added to their latents."""
    with torch.autocast("cpu", torch.bfloat16):
        latents = codec.encode(pictures.contiguous(memory_format=torch.channels_last))
        latents = latents + noise * torch.randn_like(latents)
        return codec.decode(latents.bfloat16().contiguous(memory_format=torch.channels_last)).float().clamp(0, 1)


@torch.no_grad()
def _report(model: Classifier, codec: Autoencoder, used: float, loss: float) -> None:
    model.eval()
    pictures, answers, coloured = _examples(np.random.default_rng(HELD_OUT), 96)
    for kind, shown in (("drawn", pictures), ("decoded", there_and_back(pictures, codec))):
        right = {}
        for (name, score), truth in zip(model(seen(shown)).items(), answers.T, strict=True):
            chosen = coloured if name == "second" else torch.ones_like(coloured)
            right[name] = (score.argmax(1) == truth)[chosen].float().mean().item()
        state.log(loop.curve("classifier"), cpu=used, pictures=kind, loss=loss, **right)
    model.train()


if __name__ == "__main__":
    main()
