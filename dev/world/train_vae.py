"""The autoencoder: `joint` trains encoder and decoder, `decoder` the latter alone, any time after that."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from . import loop, state
from .autoencoder import Autoencoder
from .config import HELD_OUT, STATE, VAE
from .device import half, pixels_last, placed
from .pictures import crops, drawn, numbered, write_sheet
from .workers import Worker

SHEETS = STATE / "sheets"
# Weights to begin with, where there are any.
START = STATE / "start" / "vae.pt"


def main() -> None:
    """Trains what is left of the budget of a phase, `joint` or `decoder`."""
    phase = sys.argv[1]
    worker = Worker(f"train_vae-{phase}")
    torch.manual_seed(worker.rank)
    model = placed(Autoencoder())
    if start := state.load(START):
        model.load_state_dict(start["model"])
    is_joint = phase == "joint"
    schedule, trained = (VAE.joint, model) if is_joint else (VAE.decoder, model.decoder)
    rng = np.random.default_rng([worker.rank, int(time.time())])

    def loss() -> Tensor:
        return loss_of(model, crops(rng, schedule.batch, VAE.crop), not is_joint)

    loop.train(worker, loop.Stage("vae", schedule, model, loss, partial(report, model, phase), trained, phase))


def loss_of(model: Autoencoder, pictures: Tensor, is_decoder_only: bool) -> Tensor:
    """Colours, squared colours and edges of what comes back from noisy latents."""
    pictures = pixels_last(pictures)
    with half():
        with torch.set_grad_enabled(not is_decoder_only):
            latents = model.encode(pictures)
        noisy = latents + VAE.noise * torch.randn_like(latents)
        difference = model.decode(pixels_last(noisy.bfloat16())).float() - pictures
    horizontal, vertical = difference.diff(dim=-1), difference.diff(dim=-2)
    return (
        difference.abs().mean()
        + VAE.squares * difference.square().mean()
        + VAE.edges * (horizontal.abs().mean() + vertical.abs().mean())
        + 2e-3 * latents.square().mean()
    )


@torch.no_grad()
def reconstructed(model: Autoencoder, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Latents, and pictures after the way there and back, in half precision."""
    with half():
        latents = model.encode(pixels_last(pictures))
        decoded = model.decode(pixels_last(latents.bfloat16()))
    return latents.cpu(), decoded.float().clamp(0, 1).cpu()


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """(B,) in dB."""
    return -10 * torch.log10((first - second).square().mean((1, 2, 3)))


def by_style(values: Tensor, numbers: range) -> Iterator[tuple[str, float]]:
    """The mean of each style's pictures."""
    styles = [numbered(number).style for number in numbers]
    for style in sorted(set(styles)):
        chosen = torch.tensor([name == style for name in styles])
        yield style, values[chosen].mean().item()


def report(model: Autoencoder, phase: str, used: float, loss: float) -> None:
    """Quality on held-out pictures, as a line and as a sheet."""
    numbers = range(HELD_OUT, HELD_OUT + 64)
    pictures = drawn(numbers)
    latents, decoded = reconstructed(model, pictures)
    quality = psnr(pictures, decoded)
    values = {"loss": loss, "psnr": quality.mean().item(), **dict(by_style(quality, numbers))}
    spread = " ".join(f"{value:.2f}" for value in latents.std((0, 2, 3)).tolist())
    state.log(loop.curve("vae"), phase=phase, cpu=used, **values, deviation=spread)
    pairs = torch.stack([pictures[:24], decoded[:24]], 1).flatten(0, 1)
    write_sheet(SHEETS / f"vae_{phase}_{int(used):05d}.png", pairs, 12)


if __name__ == "__main__":
    main()
