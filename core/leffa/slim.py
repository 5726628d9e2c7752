"""Slim checkpoints: what the models use, in half precision."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..models import checkpoint
from ..patches.progress import each_of
from . import body_map, layout
from .unet import CLASSES


def slim(source: str | Path, target: str | Path, with_vae: bool = True) -> int:
    """Writes a slim copy of a Leffa checkpoint, which loads like the original.

    Args:
        source: checkpoint as published.
        target: new safetensors file; nothing is left there if writing fails.
        with_vae: keep the VAE.

    Returns:
        bytes written.

    Raises:
        FileExistsError: there is a target already.
        RuntimeError: the source cannot be read, or is no Leffa checkpoint; or the target cannot be written.
    """
    weights = checkpoint.load(source)
    layout.require_leffa_file(checkpoint.shapes(weights), Path(source).name)
    used = _used_by_unets(checkpoint.shapes(weights), Path(source).name)
    names = [name for name in weights if name in used or (with_vae and name.startswith(layout.VAE))]
    kept: dict[str, Tensor] = {}
    for name in each_of(names):
        weight = weights.pop(name)
        kept[name] = weight.half().contiguous() if weight.is_floating_point() else weight
    said = {key: text for key, text in checkpoint.load_metadata(source).items() if key == body_map.METADATA}
    checkpoint.save(kept, target, {"about": "Leffa without unused weights", **said})
    return Path(target).stat().st_size


def _used_by_unets(shapes: checkpoint.Shapes, file: str) -> set[str]:
    used = set()
    for prefix, kind in CLASSES.items():
        inside = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
        config = layout.unet_config(inside, f"{file} ({prefix[:-1]})")
        unet = kind(**config, num_heads=1, device=torch.device("meta"))
        needed = unet.state_dict()
        used |= {prefix + theirs for theirs, ours in layout.to_host(config).items() if ours in needed}
    return used
