"""Text to picture: text encoder and U-Net on the latents of the world."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from refattention_demo.world.captions import caption
from torch import Tensor, nn

from . import loop, measure, state
from .autoencoder import Autoencoder
from .classifier import trained as trained_classifier
from .config import BASE, HELD_OUT, STATE
from .device import DEVICE, half, pixels_last
from .encode import autoencoder, latents, scale
from .pictures import numbered, write_sheet
from .text import TextEncoder, tokens
from .train_text import trained as trained_text
from .unet import STEPS, build, noise_of, sample, signal
from .workers import Clock, Worker

CHECKPOINT, SHEETS = loop.checkpoint("base"), STATE / "sheets"
# Weights of another U-Net to begin with, where there are any.
START = STATE / "start" / "unet.pt"
FOLLOW_EVERY = 4
# How many pictures the learning curve is measured on
FIXED = 128
SHOWN = (
    "an orange cat wearing a blue shirt with a yellow star on the beach, flat cartoon",
    "a pink rabbit waving wearing a green striped shirt in the forest, flat cartoon",
    "a yellow robot cheering wearing a red shirt in a room, ink outline",
    "a blue bear with glasses pointing wearing a white shirt with a red heart in the snow, flat cartoon",
    "a sleepy green girl wearing a purple dotted shirt in the city at night, neon",
    "a white cat wearing a red checked shirt in the snow, watercolor",
    "a bear in the forest, blueprint",
    "a robot in the city at night, ink outline",
    "two of the same, a yellow rabbit wearing a black shirt with a white cross on the beach, flat cartoon",
    "two of the same, a cat wearing a green shirt in a room, ink outline",
    "a pink girl and a blue bear in a room, flat cartoon",
    "a white rabbit wearing a blue shirt with a yellow ring in the city at night, flat cartoon",
)


@dataclass
class Models:
    """What is trained, and the mean of its weights over the last steps."""

    unet: nn.Module
    text: TextEncoder
    smooth: dict[str, Tensor]

    def weights(self) -> dict[str, nn.Parameter]:
        """All weights by name."""
        both = (("unet", self.unet), ("text", self.text))
        return {f"{name}.{key}": weight for name, model in both for key, weight in model.named_parameters()}

    def __enter__(self) -> None:
        """Inside a `with` block the models have their smooth weights."""
        self.kept = {name: weight.data for name, weight in self.weights().items()}
        for name, weight in self.weights().items():
            weight.data = self.smooth[name]

    def __exit__(self, *error: object) -> None:
        for name, weight in self.weights().items():
            weight.data = self.kept[name]


def main() -> None:
    """Trains until the budget is spent."""
    worker = Worker("train_base")
    saved = state.load(CHECKPOINT) or {"used": 0.0, "seen": 0}
    clock = Clock(worker, BASE.schedule, saved["used"])
    if clock.is_over:
        return
    torch.manual_seed(int(time.time()) + worker.rank)
    rng = np.random.default_rng([worker.rank, int(time.time())])
    models = loaded(saved)
    weights = list(models.weights().values())
    optimiser = torch.optim.AdamW(weights, lr=0.0, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    if "optimiser" in saved:
        optimiser.load_state_dict(saved["optimiser"])
    data, numbers = latents()
    report = Report(models, clock, saved, data, numbers)
    while not clock.is_over:
        for group in optimiser.param_groups:
            group["lr"] = clock.rate()
        loss = loss_of(models, *_batch(rng, data, numbers))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        _follow(models, clock.step)
        report.seen += BASE.schedule.batch * worker.count
        report.loss = 0.98 * report.loss + 0.02 * loss.item() if report.loss else loss.item()
        if clock.meet(weights) and worker.leads:
            report.maybe(optimiser)
    if worker.leads:
        report.now(optimiser)
        report.measure()


def loaded(saved: dict[str, Any]) -> Models:
    """The models of a checkpoint; new ones begin with the trained text encoder and what fits of another U-Net."""
    unet, text = build(), TextEncoder()
    if "smooth" not in saved:
        text = trained_text()
        other = state.load(START) or {}
        unet.load_state_dict({name: weight for name, weight in other.items() if "attn2" not in name}, strict=False)
    models = Models(unet, text, {})
    for name, weight in models.weights().items():
        if "weights" in saved:
            weight.data.copy_(saved["weights"][name])
    models.smooth = saved.get("smooth") or {name: weight.detach().clone() for name, weight in models.weights().items()}
    return models


def _batch(rng: Generator, data: Tensor, numbers: list[int]) -> tuple[Tensor, Tensor]:
    """Latents, and the row numbers of their captions, some of them empty."""
    chosen = rng.integers(0, len(data), BASE.schedule.batch)
    captions = [
        tokens("" if rng.random() < BASE.unnamed else caption(numbered(numbers[index]), rng)) for index in chosen
    ]
    return data[torch.from_numpy(chosen)], torch.tensor(captions)


def loss_of(models: Models, x: Tensor, captions: Tensor) -> Tensor:
    """The weighted error of the noise on latents (B, 4, H, W) with captions (B, 77)."""
    # one noise level out of each of as many equal parts: the loss of a batch varies less
    steps = ((torch.randperm(len(x)) + torch.rand(len(x))) / len(x) * STEPS).long().clamp_max(STEPS - 1)
    noisy, noise = noised(x, steps)
    with half():
        context = models.text(captions)
    error = (noise_of(models.unet, noisy, steps, context) - noise).square().mean((1, 2, 3))
    return (weight_of(steps).to(error) * error).mean()


def noised(x: Tensor, steps: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Latents with the noise of these steps, and the noise."""
    noise = torch.randn_like(x) if noise is None else noise
    kept = signal()[steps][:, None, None, None].to(x)
    return kept.sqrt() * x + (1 - kept).sqrt() * noise, noise


def weight_of(steps: Tensor) -> Tensor:
    """Weights between that of the noise and that of the picture, bounded at low noise; their mean over all steps is 1.

    The plain error of the noise hardly counts the high noise levels, at which text decides what appears.
    """
    ratio = signal() / (1 - signal())
    weights = ratio.clamp_max(BASE.gamma).sqrt() / ratio
    return (weights / weights.mean())[steps]


@torch.no_grad()
def _follow(models: Models, step: int) -> None:
    """Every few steps, as it reads all weights; early on the mean is short."""
    if step % FOLLOW_EVERY:
        return
    decay = min(BASE.schedule.ema, (1 + step) / (10 + step)) ** FOLLOW_EVERY
    weights = [weight.data for weight in models.weights().values()]
    torch._foreach_lerp_(list(models.smooth.values()), weights, 1 - decay)


class Report:
    """Learning curve, sheets, accuracy and checkpoints of the leading worker."""

    def __init__(self, models: Models, clock: Clock, saved: dict[str, Any], data: Tensor, numbers: list[int]) -> None:
        self.models, self.clock = models, clock
        self.fixed, self.numbers = data[:FIXED], numbers[:FIXED]
        self.seen, self.loss = saved["seen"], 0.0
        self.reported, self.shown, self.measured = (saved.get(name, 0.0) for name in ("reported", "shown", "measured"))
        self.codec = autoencoder()

    def maybe(self, optimiser: torch.optim.Optimizer) -> None:
        """Whatever is due."""
        used = self.clock.used
        if used - self.reported > BASE.schedule.report_every:
            self.now(optimiser)
        if used - self.shown > BASE.sheet_every:
            self.shown = used
            write_sheet(SHEETS / f"base_{int(used):05d}.png", painted(self.models, self.codec, SHOWN), 6)
        if used - self.measured > BASE.measure_every:
            self.measured = used
            self.measure()

    def measure(self) -> None:
        """Accuracy so far."""
        measure_accuracy(self.models, self.codec, self.clock.used, self.seen)

    def now(self, optimiser: torch.optim.Optimizer) -> None:
        """Saves, and adds a line to the curve."""
        self.reported = self.clock.used
        content = {
            "used": self.clock.used,
            "seen": self.seen,
            "smooth": self.models.smooth,
            "optimiser": optimiser.state_dict(),
        }
        content |= {name: getattr(self, name) for name in ("reported", "shown", "measured")}
        content["weights"] = {name: weight.detach() for name, weight in self.models.weights().items()}
        state.save(CHECKPOINT, content)
        state.log(loop.curve("base"), cpu=self.clock.used, seen=self.seen, loss=self.loss, **self._fixed_error())

    @torch.no_grad()
    def _fixed_error(self) -> dict[str, float]:
        """The error of the noise on fixed pictures, noise and steps, by quarters of the schedule."""
        noise = torch.randn(self.fixed.shape, generator=torch.Generator().manual_seed(7))
        steps = torch.linspace(5, 995, len(noise)).long()
        said = [tokens(caption(numbered(number), np.random.default_rng(number))) for number in self.numbers]
        with self.models, half():
            context = self.models.text(torch.tensor(said))
            noisy, _ = noised(self.fixed, steps, noise)
            error = (noise_of(self.models.unet, noisy, steps, context) - noise).square().mean((1, 2, 3))
        return {f"quarter{index}": part.mean().item() for index, part in enumerate(error.chunk(4))}


@torch.no_grad()
def painted(models: Models, codec: Autoencoder, prompts: Sequence[str], seed: int = 0) -> Tensor:
    """(B, 3, 128, 128): one picture for each prompt, by the smooth weights."""
    noise = torch.randn(len(prompts), 4, 16, 16, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    with models, half():
        said = models.text(torch.tensor([tokens(prompt) for prompt in [*prompts, ""]], device=DEVICE)).float()
        x = sample(models.unet, said[:-1], said[-1:], noise, BASE.guidance)
        return codec.decode(pixels_last((x / scale()).bfloat16())).float().clamp(0, 1).cpu()


def measure_accuracy(models: Models, codec: Autoencoder, used: float, seen: int, count: int = 50) -> None:
    """Adds the accuracy on held-out prompts to its curve, if there is a classifier."""
    if not loop.checkpoint("classifier").exists():
        return
    asked = measure.prompts(count)
    texts, starts = [text for text, _ in asked], range(0, count, 25)
    pictures = torch.cat([painted(models, codec, texts[start : start + 25], HELD_OUT + start) for start in starts])
    found = measure.accuracy(trained_classifier(), pictures, [truth for _, truth in asked])
    state.log(loop.curve("accuracy"), cpu=used, seen=seen, prompts=count, **found)


if __name__ == "__main__":
    main()
