"""Writes the compact weights of what is trained so far: `python -m world.export [FOLDER]`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from refattention_demo.world import expand, models
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import loop, state
from .config import CALIBRATED, EXPORT, result
from .encode import scale
from .text import rows

Tensors = dict[str, Tensor]

ABOUT = {"format": "pt", "about": "Trained on drawings of ComfyUI-RefAttention's world."}


def compact() -> Tensors:
    """Autoencoder, text encoder and U-Net in half precision under the names that `demo/world/expand.py` reads.

    Those in training, or else those that the demo has.
    """
    base = state.load(loop.checkpoint("base"))
    if base is None:
        return load_file(models.FOLDER / models.BASE)
    tensors = {f"vae.{name}": tensor for name, tensor in loop.trained("vae").items()}
    tensors |= {"vae.scale": torch.tensor(scale()), "text.rows": torch.tensor(rows(), dtype=torch.int32)}
    tensors |= base["smooth"]
    return {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous() for name, tensor in tensors.items()
    }


def vision() -> Tensors:
    """The vision encoder under the names that it has in the host: the one in training, or else the demo's."""
    if not loop.checkpoint("vision").exists():
        return load_file(models.FOLDER / models.VISION)
    return {in_host(name): tensor.half().contiguous() for name, tensor in loop.trained("vision").items()}


def in_host(name: str) -> str:
    """The host's name for a tensor of the vision encoder."""
    if name.startswith("layers."):
        return f"vision_model.encoder.{name}"
    if name.startswith("pre_layrnorm."):
        return f"vision_model.{name}"
    suffix = "" if name == "class_embedding" or name.endswith(".weight") else ".weight"
    return f"vision_model.embeddings.{name}{suffix}"


def adapters(base: Tensors) -> Iterator[tuple[str, Tensors]]:
    """What is trained on top of the base, by the names of the compact files; of Leffa, what its base does not have.

    Args:
        base: compact.
    """
    if (path := result("leffa_plain")).exists():  # with the loss garments come out worse here
        known = expand.leffa({}, base)
        trained = load_file(path).items()
        yield models.LEFFA, expand.packed({name: each for name, each in trained if not same(each, known.get(name))})
    if (path := result("deadiff")).exists():
        # both branches look with the same encoder
        twice = "content_blip.visual_encoder."
        yield models.DEADIFF, {name: each for name, each in load_file(path).items() if not name.startswith(twice)}


def same(one: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors are equal in half precision."""
    return other is not None and torch.equal(one.half(), other.half())


def main() -> None:
    """Writes the files and says how large they are."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else EXPORT
    folder.mkdir(parents=True, exist_ok=True)
    base = compact()
    parts = {models.BASE: base, **dict(adapters(base))}
    if loop.checkpoint("vision").exists():
        parts[models.VISION] = vision()
    if loop.checkpoint("classifier").exists():
        parts[models.CLASSIFIER] = {name: each.half().contiguous() for name, each in loop.trained("classifier").items()}
    for name, tensors in parts.items():
        save_file(tensors, folder / name, metadata=ABOUT)
        print(f"{folder / name}: {(folder / name).stat().st_size / 1e6:.1f} MB")
    if CALIBRATED.exists():
        shutil.copyfile(CALIBRATED, folder / models.REFINE)


if __name__ == "__main__":
    main()
