"""Autoencoder, text encoder and U-Net in ten minutes of a GPU.

`REFATTENTION_WORLD_DEVICE=cuda python -m world.gpu`: everything is drawn, captioned and moved to the GPU first, so
that no step waits for the CPU. It begins with what the state folder holds and leaves checkpoints there in the same
form, so that `make world-train` goes on from them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable

import numpy as np
import torch
from refattention_demo.world.captions import caption
from refattention_demo.world.draw import SIZE, picture
from torch import Tensor, nn

from . import encode, loop, state, train_base, train_vae
from .autoencoder import Autoencoder
from .config import BASE, STATE, VAE
from .device import DEVICE, half, placed
from .pictures import numbered, write_sheet
from .text import tokens
from .workers import falling

PART = 512
CAPTIONS = 6


def main() -> None:
    """Draws, then trains the three stages within their seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=60_000)
    parser.add_argument("--vae", type=float, default=140, help="seconds")
    parser.add_argument("--base", type=float, default=330, help="seconds")
    parser.add_argument("--batch", type=int, default=384)
    chosen = parser.parse_args()
    started = time.monotonic()
    pictures, said = _everything(chosen.pictures)
    _say(f"{len(pictures)} pictures drawn", started)
    codec = _autoencoder(pictures, chosen.vae, chosen.batch)
    _say("autoencoder trained", started)
    latents = _latents(codec, pictures)
    del pictures
    _base(codec, latents, said, chosen.base, chosen.batch)
    _say("base trained", started)


def _everything(count: int) -> tuple[Tensor, Tensor]:
    """Pictures (N, H, W, 3) and row numbers of some captions of each (N, CAPTIONS, 77), on the device."""
    parts = [range(start, min(start + PART, count)) for start in range(0, count, PART)]
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        found = pool.map(_part, parts)
    pictures, said = (torch.from_numpy(np.concatenate(column)) for column in zip(*found, strict=True))
    return pictures.to(DEVICE), said.to(DEVICE)


def _part(numbers: range) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(numbers[0])
    records = [numbered(number) for number in numbers]
    said = [[tokens(caption(one, rng)) for _ in range(CAPTIONS)] for one in records]
    return np.stack([picture(one) for one in records]), np.array(said, np.int32)


def _steps(weights: list[nn.Parameter], seconds: float, rate: float, hold: float, loss: Callable[[], Tensor]) -> int:
    """Trains for that long; the learning rate stays until `hold` of it, then falls. Returns the number of steps."""
    optimiser = torch.optim.AdamW(weights, lr=0.0, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    started, step, following = time.monotonic(), 0, [weight.detach().clone() for weight in weights]
    while (share := (time.monotonic() - started) / seconds) < 1:
        step += 1
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, step / 100) * falling(share, hold, 0.02)
        value = loss()
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        torch._foreach_lerp_(following, [weight.data for weight in weights], 1 - min(0.999, (1 + step) / (10 + step)))
        if step % 200 == 0:
            print(f"step {step}, {100 * share:.0f} %, loss {value.item():.4f}", flush=True)
    for weight, mean in zip(weights, following, strict=True):
        weight.data.copy_(mean)
    return step


def _autoencoder(pictures: Tensor, seconds: float, batch: int) -> Autoencoder:
    model = placed(Autoencoder())
    if loop.checkpoint("vae").exists():
        model.load_state_dict(loop.trained("vae"))

    def loss() -> Tensor:
        chosen = pictures[torch.randint(len(pictures), (batch // 2,), device=DEVICE)]
        y, x = torch.randint(SIZE - VAE.crop + 1, (2,)).tolist()
        crops = chosen[:, y : y + VAE.crop, x : x + VAE.crop].permute(0, 3, 1, 2).float().div(255)
        return train_vae.loss_of(model, crops.flip(3) if torch.rand(()) < 0.5 else crops, False)

    _steps(list(model.parameters()), seconds, 1.5 * VAE.joint.rate, 0.3, loss)
    used = {"joint": VAE.joint.seconds, "decoder": VAE.decoder.seconds}
    state.save(loop.checkpoint("vae"), {"model": model.cpu().state_dict(), "used": used, "phase": "gpu"})
    model.to(DEVICE)
    train_vae.report(model, "gpu", seconds, 0.0)
    return model


@torch.no_grad()
def _latents(codec: Autoencoder, pictures: Tensor) -> Tensor:
    """(N, 4, H, W) of standard deviation 1; the first part is written, as the scale is read from it."""
    found = []
    for chosen in pictures.split(256):
        with half():
            found.append(codec.encode(chosen.permute(0, 3, 1, 2).float().div(255)))
    latents = torch.cat(found)
    encode.write_first(latents)
    return latents * encode.scale()


def _base(codec: Autoencoder, latents: Tensor, said: Tensor, seconds: float, batch: int) -> None:
    saved = state.load(train_base.CHECKPOINT) or {}
    # new latents: the weights go on, what was averaged or counted with the old ones does not
    models = train_base.loaded({name: saved[name] for name in ("weights", "smooth") if name in saved})
    models.unet.to(DEVICE)
    models.text.to(DEVICE)
    nothing = torch.tensor(tokens(""), device=DEVICE)

    def loss() -> Tensor:
        chosen = torch.randint(len(latents), (batch,), device=DEVICE)
        captions = said[chosen, torch.randint(CAPTIONS, (batch,), device=DEVICE)].long()
        captions[torch.rand(batch, device=DEVICE) < BASE.unnamed] = nothing
        return train_base.loss_of(models, latents[chosen], captions)

    steps = _steps(list(models.weights().values()), seconds, 1.2e-3, 0.5, loss)
    weights = {name: weight.detach().cpu() for name, weight in models.weights().items()}
    content = {"used": 0.0, "seen": steps * batch, "weights": weights, "smooth": weights}
    state.save(train_base.CHECKPOINT, content)
    models.smooth = {name: weight.detach() for name, weight in models.weights().items()}
    write_sheet(STATE / "sheets" / "base_gpu.png", train_base.painted(models, codec, train_base.SHOWN), 6)
    train_base.measure_accuracy(models, codec, seconds, steps * batch, 200)


def _say(what: str, started: float) -> None:
    print(f"{what} after {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
