"""Leffa's checkpoints: recognised by content, complete or refused, nothing kept that no result needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bootstrap import ROOT
from refattention.core.leffa import layout
from refattention.core.leffa.loader import from_state_dict, load
from refattention.core.leffa.model import LeffaModel, LeffaReferenceModel
from refattention.core.leffa.slim import slim
from refattention.core.leffa.unet import LeffaUNet, ReferenceUNet
from refattention.core.models import checkpoint
from refattention_demo import codec
from refattention_demo import leffa as demo
from refattention_demo.families import UNetSize
from safetensors.torch import load_file, save_file
from tryon import KINDS, weights

FULL = {"sd15": demo.TRY_ON, "sdxl": demo.POSE_TRANSFER}
# Names and parameters of the two U-Nets of the published files, and how many of them no result depends on
PUBLISHED = {
    "sd15": {"unet.": (686, 859544004, 80), "unet_encoder.": (686, 859520964, 99)},
    "sdxl": {"unet.": (1680, 2567486724, 354), "unet_encoder.": (1680, 2567463684, 411)},
}

FIRST_BLOCK = "unet.down_blocks.0.resnets.0.conv1.weight"


@pytest.mark.parametrize("kind", KINDS)
def test_full_size_layout(kind: str) -> None:
    """The whole table of a published file, on shapes alone: what is needed, what is dropped, nothing left over."""
    shapes: dict[str, Any] = demo.random_state_dict(FULL[kind], lambda shape: shape)
    for prefix, (names, parameters, unused) in PUBLISHED[kind].items():
        inside = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
        assert len(inside) == names
        assert sum(torch.Size(shape).numel() for shape in inside.values()) == parameters
        config = layout.unet_config(inside, "a file")
        unet = (LeffaUNet if prefix == "unet." else ReferenceUNet)(**config, num_heads=8, device=torch.device("meta"))
        needed = {name: tuple(value.shape) for name, value in unet.state_dict().items()}
        found = {ours: inside[theirs] for theirs, ours in layout.to_host(config).items() if ours in needed}
        assert found == needed
        assert len(inside) - len(needed) == unused


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_becomes_two_models(kind: str) -> None:
    state = weights(kind)
    want = state["unet.conv_in.weight"].clone()
    parts = from_state_dict(state, "x.pth")
    assert isinstance(parts.generative.model, LeffaModel) and isinstance(parts.reference.model, LeffaReferenceModel)
    assert torch.equal(parts.generative.model_state_dict()["diffusion_model.input_blocks.0.0.weight"], want)
    assert parts.vae is None
    for patcher in (parts.generative, parts.reference):
        names = [name for name in patcher.model_state_dict() if "attn2" in name or "label_emb" in name]
        assert not names
    assert not any(name.startswith("diffusion_model.out.") for name in parts.reference.model_state_dict())
    config = parts.generative.model.model_config
    assert config.unet_config["num_heads"] == (8 if kind == "sd15" else -1)
    assert bool(parts.generative.model.model_sampling.zsnr) is (kind == "sdxl")


def test_the_vae_of_the_checkpoint() -> None:
    state = weights() | {f"vae.{name}": tensor for name, tensor in codec.state_dict(0.18215).items()}
    vae = from_state_dict(state, "x.pth").vae
    assert vae is not None and vae.encode(torch.rand(1, 16, 16, 3)).shape == (1, 4, 2, 2)


def drop(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3)}, "takes 9 input"),
        (lambda s: {"conv_in.weight": torch.zeros(8, 4, 3, 3)}, "takes 4 input channels, but Leffa needs"),
        (lambda s: {"text.weight": torch.zeros(8)}, "it has no U-Net, but Leffa needs a generative U-Net with 12"),
        (lambda s: drop(s, "unet_encoder.conv_in.weight"), "takes 12 input channels"),
        (lambda s: drop(s, "unet.conv_out.bias"), r"\(unet\) does not fit: 1 of its \d+ weights are missing \(conv"),
        (lambda s: drop(s, "unet.down_blocks.0.resnets.0.conv1.weight"), "resnets.0.conv1.weight' is missing"),
        (lambda s: {**s, "unet.time_embedding.linear_1.bias": torch.zeros(3)}, r"linear_1.bias is 3 instead of 256"),
        (lambda s: {**s, "unet.lora": torch.zeros(3)}, r"1 are unknown \(lora\)"),
        (lambda s: {**s, "unet.conv_in.weight": torch.zeros(8)}, "its U-Net takes 4 input channels, but Leffa"),
        (lambda s: {**s, FIRST_BLOCK: torch.zeros(())}, r"\(unet\) does not fit: the shapes of its convolutions"),
        (lambda s: {**s, FIRST_BLOCK: s[FIRST_BLOCK].flatten()}, "the shapes of its convolutions contradict"),
    ],
    ids=[
        *("inpainting", "diffusers", "text", "half", "missing", "structure", "shape", "unknown"),
        *("no convolution", "a number", "a row"),
    ],
)  # fmt: skip
def test_what_is_no_leffa_checkpoint(change: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        from_state_dict(change(weights()), "x.pth")


def write_full(kind: str, path: Path) -> None:
    torch.save(weights(kind) | {f"vae.{name}": tensor for name, tensor in codec.state_dict(0.18215).items()}, path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slim_file_gives_the_same(kind: str, tmp_path: Path) -> None:
    write_full(kind, tmp_path / "full.pth")
    slim(tmp_path / "full.pth", tmp_path / "slim.safetensors")
    state = load_file(tmp_path / "slim.safetensors")
    assert not [name for name in state if ".attn2." in name or "add_embedding" in name]
    assert all(not tensor.is_floating_point() or tensor.dtype == torch.float16 for tensor in state.values())
    full, again = load(tmp_path / "full.pth"), load(tmp_path / "slim.safetensors")
    for one, other in ((full.generative, again.generative), (full.reference, again.reference)):
        expected = one.model_state_dict()
        assert expected.keys() == other.model_state_dict().keys()
        assert all(torch.equal(v.half(), other.model_state_dict()[n].half()) for n, v in expected.items())
    assert again.vae is not None
    for patcher in (again.generative, again.reference):
        factory, arguments = patcher.cached_patcher_init
        copy = factory(*arguments, disable_dynamic=True)
        assert type(copy.model) is type(patcher.model) and copy.model is not patcher.model


def test_the_command_writes_a_slim_file_and_over_none(tmp_path: Path) -> None:
    write_full("sd15", tmp_path / "full.pth")
    command = [sys.executable, str(ROOT / "tools" / "convert_leffa.py"), "full.pth", "slim.safetensors"]
    (tmp_path / "slim.safetensors.unfinished").write_text("mine")
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    slim(tmp_path / "full.pth", tmp_path / "expected.safetensors")
    # Not the bytes: safetensors writes what a file says of itself in any order.
    written, expected = (tmp_path / f"{name}.safetensors" for name in ("slim", "expected"))
    assert checkpoint.load_metadata(written) == checkpoint.load_metadata(expected)
    one, other = load_file(written), load_file(expected)
    assert one.keys() == other.keys()
    assert all(one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "slim.safetensors.unfinished").read_text() == "mine"
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 1 and "exists already" in refused.stderr


def test_the_command_refuses_what_is_no_leffa(tmp_path: Path) -> None:
    save_file({"conv_in.weight": torch.zeros(8, 4, 3, 3)}, tmp_path / "x.safetensors")
    with pytest.raises(RuntimeError, match="is no Leffa checkpoint"):
        slim(tmp_path / "x.safetensors", tmp_path / "y.safetensors")
    save_file(drop(weights(), "unet.down_blocks.0.resnets.0.conv1.weight"), tmp_path / "x.safetensors")
    with pytest.raises(RuntimeError, match=r"x.safetensors \(unet\) does not fit: .*conv1.weight' is missing"):
        slim(tmp_path / "x.safetensors", tmp_path / "y.safetensors")
    assert list(tmp_path.iterdir()) == [tmp_path / "x.safetensors"]


def test_a_head_of_the_true_size() -> None:
    tiny = UNetSize(64, (1,), (1,), 8, use_linear_in_transformer=False, num_heads=8)
    state = demo.random_state_dict(tiny, torch.zeros)
    unet = from_state_dict(state, "x.pth").generative.model.diffusion_model
    assert unet.input_blocks[1][1].transformer_blocks[0].n_heads == 8
