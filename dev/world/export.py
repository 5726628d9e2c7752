"""Writes the compact weights of what is trained so far: `python -m dev.world.export [FOLDER]`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from . import state
from .config import STATE
from .encode import scale
from .text import rows

FILE_NAME = "world-sd15.safetensors"


def compact() -> dict[str, Tensor]:
    """Autoencoder, text encoder and U-Net in half precision under the names that `demo/world/expand.py` reads.

    Raises:
        FileNotFoundError: a stage has not begun yet.
    """
    vae, base = state.load(STATE / "vae.pt"), state.load(STATE / "base.pt")
    if vae is None or base is None:
        raise FileNotFoundError(f"{STATE} has no trained autoencoder and U-Net yet: run `make world-train`.")
    tensors = {f"vae.{name}": tensor for name, tensor in vae["model"].items()}
    tensors |= {"vae.scale": torch.tensor(scale()), "text.rows": torch.tensor(rows(), dtype=torch.int32)}
    tensors |= base["smooth"]
    return {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous() for name, tensor in tensors.items()
    }


def main() -> None:
    """Writes the file and says how large it is."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else STATE / "export"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / FILE_NAME
    save_file(
        compact(), target, metadata={"format": "pt", "about": "Trained on drawings of ComfyUI-RefAttention's world."}
    )
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
