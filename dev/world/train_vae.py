"""The autoencoder: `joint` trains encoder and decoder, `decoder` the latter alone, any time after that."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import state
from .autoencoder import Autoencoder
from .config import HELD_OUT, STATE, VAE, Schedule
from .pictures import crops, drawn, numbered, write_sheet
from .workers import Clock, Worker

CHECKPOINT, CURVE = STATE / "vae.pt", STATE / "curves" / "vae.jsonl"
SHEETS = STATE / "sheets"
# Weights to begin with; without them it starts from colour averages.
START = STATE / "start" / "vae.pt"


def main() -> None:
    """Trains what is left of the budget of a phase, `joint` or `decoder`."""
    phase = sys.argv[1]
    worker = Worker(f"train_vae-{phase}")
    saved = state.load(CHECKPOINT) or {"used": {}}
    torch.manual_seed(worker.rank)
    model = Autoencoder().to(memory_format=torch.channels_last)
    model.load_state_dict(saved["model"] if "model" in saved else state.load(START)["model"])
    schedule, trained = (VAE.joint, model) if phase == "joint" else (VAE.decoder, model.decoder)
    _train(worker, model, phase, schedule, list(trained.parameters()), saved)


def _train(worker: Worker, model: Autoencoder, phase: str, schedule: Schedule, trained: list, saved: dict) -> None:
    clock = Clock(worker, schedule, saved["used"].get(phase, 0.0))
    if clock.is_over:
        return
    optimiser = torch.optim.AdamW(trained, lr=0.0, betas=(0.9, 0.98), weight_decay=1e-4)
    if saved.get("phase") == phase:
        optimiser.load_state_dict(saved["optimiser"])
    rng = np.random.default_rng([worker.rank, int(time.time())])
    reported, crops_seen, smooth = -1e9, 0, None
    while not clock.is_over:
        for group in optimiser.param_groups:
            group["lr"] = clock.rate()
        loss = _loss(model, crops(rng, schedule.batch, VAE.crop), phase == "decoder")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        crops_seen += schedule.batch
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if clock.meet(trained) and clock.used - reported > schedule.report_every and worker.leads:
            reported = clock.used
            saved |= {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "phase": phase}
            saved["used"][phase] = clock.used
            state.save(CHECKPOINT, saved)
            _report(model, phase, clock, smooth, crops_seen)
    saved |= {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "phase": phase}
    saved["used"][phase] = clock.used
    if worker.leads:
        state.save(CHECKPOINT, saved)
        _report(model, phase, clock, smooth or 0.0, crops_seen)


def _loss(model: Autoencoder, pictures: Tensor, is_decoder_only: bool) -> Tensor:
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.set_grad_enabled(not is_decoder_only):
            latents = model.encode(pictures)
        noisy = latents + VAE.noise * torch.randn_like(latents)
        difference = model.decode(noisy.bfloat16().contiguous(memory_format=torch.channels_last)).float() - pictures
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
    with torch.autocast("cpu", torch.bfloat16):
        latents = model.encode(pictures.contiguous(memory_format=torch.channels_last))
        decoded = model.decode(latents.bfloat16().contiguous(memory_format=torch.channels_last))
    return latents, decoded.float().clamp(0, 1)


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """(B,) in dB."""
    return -10 * torch.log10((first - second).square().mean((1, 2, 3)))


def by_style(values: Tensor, numbers: range) -> Iterator[tuple[str, float]]:
    """The mean of each style's pictures."""
    styles = [numbered(number).style for number in numbers]
    for style in sorted(set(styles)):
        chosen = torch.tensor([name == style for name in styles])
        yield style, values[chosen].mean().item()


def _report(model: Autoencoder, phase: str, clock: Clock, loss: float, crops_seen: int) -> None:
    numbers = range(HELD_OUT, HELD_OUT + 64)
    pictures = drawn(numbers)
    latents, decoded = reconstructed(model, pictures)
    quality = psnr(pictures, decoded)
    spread = latents.std((0, 2, 3)).tolist()
    state.log(
        CURVE, phase=phase, cpu=clock.used, crops=crops_seen, loss=loss, psnr=quality.mean().item(),
        **dict(by_style(quality, numbers)), deviation=" ".join(f"{value:.2f}" for value in spread),
    )  # fmt: skip
    pairs = torch.stack([pictures[:24], decoded[:24]], 1).flatten(0, 1)
    write_sheet(_sheet(phase, clock.used), pairs, 12)


def _sheet(phase: str, used: float) -> Path:
    return SHEETS / f"vae_{phase}_{int(used):05d}.png"


if __name__ == "__main__":
    main()
