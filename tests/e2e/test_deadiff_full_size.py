"""A checkpoint with every name, shape and type of the released one, on a real server.

Its tensors are views into a few buffers of noise, which the file stores once: small on disk and in memory.
"""

from __future__ import annotations

import gzip
import json
import math

import numpy as np
import pytest
import torch
from pixels import painted

from demo_host import load_workflow, set_inputs
from host import ROOT, HeadlessHost

pytestmark = pytest.mark.e2e
KEYS = ROOT / "tests" / "golden" / "deadiff_checkpoint_keys.json.gz"
NAME = "full_size.ckpt"
HALF_PARTS = ("conv1.", "attn.out_proj.", "mlp.c_fc.", "mlp.c_proj.")


def is_half(key: str) -> bool:
    """Which tensors the official code builds in 16 bits."""
    return ".visual_encoder." in key and any(part in key for part in HALF_PARTS)


def state_dict() -> dict[str, torch.Tensor]:
    with gzip.open(KEYS, "rt", encoding="utf-8") as file:
        groups = json.load(file)["groups"]
    shapes = {key: shape for group in groups.values() for key, shape in group.items()}
    largest = max(math.prod(shape) for shape in shapes.values())
    noise = torch.randn(largest, generator=torch.Generator().manual_seed(0)) * 0.02
    noises = {False: noise, True: noise[: 4096 * 1024].half()}
    ones = torch.ones(largest // 768)
    tensors = {}
    for key, shape in shapes.items():
        if key.endswith("position_ids"):
            tensors[key] = torch.arange(shape[-1]).expand(shape)
        elif len(shape) == 1 and key.endswith("weight"):
            tensors[key] = ones[: shape[0]]
        else:
            tensors[key] = noises[is_half(key)][: math.prod(shape)].view(shape)
    return tensors


def test_the_file_has_the_released_types() -> None:
    tensors = state_dict()
    assert len(tensors) == 2562
    assert sum(tensor.dtype == torch.float16 for tensor in tensors.values()) == 278


def test_one_file_serves_as_checkpoint_and_as_deadiff(host: HeadlessHost) -> None:
    file = host.base / "models" / "checkpoints" / NAME
    torch.save({"epoch": 1, "global_step": 100000, "state_dict": state_dict()}, file)
    workflow, logged = load_workflow("deadiff"), len(host.log())
    for node, values in {
        "CheckpointLoaderSimple": {"ckpt_name": NAME},
        "DEADiffLoader": {"deadiff_name": NAME},
        "EmptyLatentImage": {"width": 256, "height": 256},
        "KSampler": {"steps": 2},
    }.items():
        workflow = set_inputs(workflow, node, **values)
    styled, plain = (
        painted(host, set_inputs(workflow, "DEADiffStyle", strength=strength, strict=False)) for strength in (1.0, 0.0)
    )
    assert styled.shape == plain.shape == (256, 256, 3) and np.abs(styled - plain).max() > 0
    assert "Traceback" not in host.log()[logged:]
    file.unlink()
