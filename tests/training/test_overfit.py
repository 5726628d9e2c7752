"""Leffa learns eight people by heart; with REFATTENTION_TRAIN_CHECK=1 to the end, else a few steps of it."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from people import SIZE, leffa_config
from refattention.core.leffa.loader import load
from refattention.core.leffa.wrappers import attach_reference_unet
from refattention.nodes.leffa import EVERY_STEP, LeffaTryOn
from torch import Tensor
from training.pictures import mask, picture
from training_support import losses, train_here
from tryon import sample

IS_LONG = bool(os.environ.get("REFATTENTION_TRAIN_CHECK"))


def psnr(got: Tensor, want: Tensor) -> float:
    """Of latents, whose range is that of the wanted ones."""
    error = (got - want).square().mean()
    return 10 * math.log10((want.max() - want.min()) ** 2 / error)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.timeout(1800)
def test_leffa_dresses_the_people_it_has_learnt(tmp_path: Path) -> None:
    steps = 600 if IS_LONG else 20
    train = {"steps": steps, "batch_size": 8, "warmup": 5, "gradient_checkpointing": False, "schedule": "cosine"}
    train |= {"learning_rate": 2e-3, "ema": 0.98} if IS_LONG else {}
    config = leffa_config(tmp_path, train=train, method={"condition_drop": 0.0})
    assert train_here("leffa", config) == 0
    found = losses(tmp_path / "run")
    parts = load(tmp_path / "run" / "leffa.safetensors")
    model, vae = attach_reference_unet(parts.generative, parts.reference, 0), parts.vae
    scores = []
    for number in range(8 if IS_LONG else 1):
        person, garment, body = (
            picture(tmp_path / "data" / f"{name}{number}.png", SIZE)[None] for name in ("person", "garment", "body")
        )
        hole = mask(tmp_path / "data" / "mask.png", SIZE)[None]
        outputs = LeffaTryOn.execute(model, vae, person, garment, body, hole, EVERY_STEP, 5, False)
        # By DDPM, as the node says: Euler keeps errors of the noisiest steps in the channels' means, of which the norms
        # of so narrow U-Nets see little; DDPM's fresh noise lets the later steps mend them.
        latents = sample(tuple(outputs), steps=20 if IS_LONG else 2, cfg=1.0)
        scores.append(psnr(latents, vae.encode(person)))
    print(f"loss {mean(found[:5]):.3f} -> {mean(found[-50:]):.3f}, PSNR {min(scores):.1f} to {max(scores):.1f} dB")
    if IS_LONG:
        assert mean(found[-50:]) < 0.1 * mean(found[:5])
        assert min(scores) >= 25
    else:
        assert mean(found[-5:]) < 0.8 * mean(found[:5])
        assert torch.isfinite(torch.tensor(scores)).all()
