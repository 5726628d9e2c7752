"""Checkpoints of the demo models. They hold no training: everything is constructed, or drawn from a seed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from . import codec, controlnet, deadiff, families, text_encoder, unet, vision

ABOUT = "Untrained stand-in of ComfyUI-RefAttention for demo and tests. Not the model known by this file name."


def state_dict(family: str, seed: int = 0) -> dict[str, Tensor]:
    """All tensors of a checkpoint, float32, with the names that they have in the files of the real family.

    Args:
        family: one of `families.FAMILIES`.
        seed: the same seed gives the same tensors.
    """
    chosen = families.family(family)
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"model.diffusion_model.{name}": t for name, t in unet.state_dict(chosen.unet, generator).items()}
    for encoder in chosen.text_encoders:
        tensors |= text_encoder.state_dict(encoder, generator)
    return tensors | {f"first_stage_model.{name}": t for name, t in codec.state_dict(chosen.latent_scale).items()}


def write_checkpoints(folder: Path) -> None:
    """Writes the checkpoints of all families, in half precision, under the file names of the real ones.

    A file that is there already stays as it is, whatever it holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, family in families.FAMILIES.items():
        write(folder / family.file_name, partial(state_dict, name))


def write(target: Path, make: Callable[[], dict[str, Tensor]], about: str = ABOUT) -> None:
    """Writes a checkpoint in half precision, unless there is a file of that name."""
    if not target.exists():
        _write(target, {key: _half(tensor) for key, tensor in make().items()}, about)


def copy(source: Path, target: Path) -> None:
    """Copies a file as it is, metadata and all, unless there is one of that name."""
    if not target.exists():
        with _unfinished(target) as file:
            shutil.copyfile(source, file)


def write_vision_encoder(folder: Path) -> None:
    """Writes the vision encoder under the file name that the workflows have; a file that is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / vision.FILE_NAME
    if not target.exists():
        with _unfinished(target) as file:
            _write_sparse(file, vision.state_dict())


def write_deadiff(folder: Path) -> None:
    """Writes the stand-in for DEADiff, which belongs to the SD1.5 checkpoint; one that is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / deadiff.FILE_NAME
    if not target.exists():
        _write(target, deadiff.state_dict({key: _half(tensor) for key, tensor in _sd15_unet().items()}))


def write_controlnet(folder: Path) -> None:
    """Writes the stand-in for a ControlNet, which belongs to the SD1.5 checkpoint; one that is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / controlnet.FILE_NAME, lambda: controlnet.state_dict(_sd15_unet(), families.SD15.unet))


def _sd15_unet() -> dict[str, Tensor]:
    """The U-Net of the SD1.5 checkpoint, under its own names."""
    prefix = "model.diffusion_model."
    whole = state_dict("sd15")
    return {key.removeprefix(prefix): tensor for key, tensor in whole.items() if key.startswith(prefix)}


def _half(tensor: Tensor) -> Tensor:
    return tensor.half().contiguous() if tensor.is_floating_point() else tensor


def _write(target: Path, tensors: dict[str, Tensor], about: str = ABOUT) -> None:
    with _unfinished(target) as file:
        if target.suffix in (".pth", ".ckpt"):
            torch.save(tensors, file)
        else:
            save_file(tensors, file, metadata={"format": "pt", "about": about})


def _write_sparse(file: Path, tensors: dict[str, Tensor]) -> None:
    """Writes half-precision tensors in safetensors format, of which those that are all zero take no room on the disk.

    The library writes every byte: 600 MB for the vision encoder, whose idle blocks are there only because the host
    knows encoders by their size.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "about": ABOUT}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        data = opened.tell()
        for name, tensor in tensors.items():
            if tensor.any():
                opened.seek(data + header[name]["data_offsets"][0])
                opened.write(tensor.numpy().tobytes())
        opened.truncate(data + end)


@contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """Another name to write to first: a file is there completely or not at all."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unfinished = Path(folder) / target.name
        yield unfinished
        os.replace(unfinished, target)
