"""DEADiff's stand-in: what its tokens hold, and that its file loads like the released one."""

from __future__ import annotations

from pathlib import Path

import torch
from refattention.core.deadiff.loaded import load
from refattention.core.models import checkpoint
from refattention_demo import deadiff, weights


def test_tokens_hold_the_mean_colour(tmp_path: Path) -> None:
    weights.write_deadiff(tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.name == deadiff.FILE_NAME
    written = file.stat().st_mtime_ns
    weights.write_deadiff(tmp_path)
    assert file.stat().st_mtime_ns == written
    loaded = load(checkpoint.load(str(file)))
    picture = torch.zeros(1, 28, 28, 3)
    picture[:, :, :14] = torch.tensor([0.9, 0.4, 0.1])
    mean = (torch.tensor([0.45, 0.2, 0.05]) - deadiff.CLIP_MEAN) / deadiff.CLIP_STD
    tokens = loaded.tokens("style", picture, "squash", "average")
    assert tokens.shape == (1, 16, 64)
    # The class token is the 257th and has no colour.
    assert torch.allclose(tokens[0, :, deadiff.RGB], mean.expand(16, 3) * 256 / 257, atol=0.03)
    assert torch.allclose(tokens[0, :, deadiff.LARGE], torch.tensor(deadiff.CONSTANT), rtol=0.01)


def test_only_the_tinting_layers_bring_anything() -> None:
    unet = weights.unet.state_dict(deadiff.DEMO_SIZE.unet, torch.Generator().manual_seed(0))
    tensors = deadiff.state_dict(unet)
    acting = {key for key, tensor in tensors.items() if ".i_to_" in key and tensor.any()}
    assert acting == {
        f"model.diffusion_model.{block}transformer_blocks.0.attn2.i_to_v.weight" for block in deadiff.TINTED
    }
