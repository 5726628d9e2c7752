"""One optimiser step of a full-size SD1.5 adapter at 512 x 512 pixels, in a process of its own.

Prints the most memory it held, base model included, and the seconds the step took.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), *(str(HERE.parent / each) for each in ("tools", "dev", "demo/runs", "tests/support"))]

import bootstrap

bootstrap.name_packages()
bootstrap.prepare_host(exact=True)

import torch
from memory import peak_bytes
from models import prompt, random_model
from refattention.core.p3s.adapter import trainable
from refattention.core.p3s.objective import Settings
from refattention.core.p3s.training import Pictures, Trainer
from refattention.core.patches.training import encode

VISION = 257, 1024  # tokens of CLIP ViT-L/14 and their width


def main() -> None:
    """The node's defaults: bfloat16 for the computation, float32 for weights and optimiser, checkpointing."""
    torch.set_num_threads(2)
    model = random_model("sd15", torch.bfloat16)
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(1, 4, 64, 64, generator=generator)
    texts = (encode(model, prompt("sd15", seed), latents) for seed in (1, 2))
    vision = torch.randn(1, *VISION, generator=generator)
    settings = Settings(mixed_precision=True)
    trainer = Trainer(model, trainable(model, VISION[1], 0), Pictures(latents, vision, None, *texts), settings)
    start = time.perf_counter()
    losses = trainer.step(trainer.draw(torch.tensor([0]), generator))
    seconds = time.perf_counter() - start
    weights = sum(weight.numel() for weight in trainer.network.parameters())
    loss = losses["denoising"].item()
    print(json.dumps({"peak": peak_bytes(), "seconds": seconds, "weights": weights, "loss": loss}))


if __name__ == "__main__":
    main()
