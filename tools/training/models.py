"""The user's models, by ComfyUI's own loaders."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.sd
import comfy.utils
import folder_paths
import torch
from pack import run_extension
from torch import Tensor

from .config import Config, ConfigError


@dataclass(frozen=True, eq=False)
class Loaded:
    """MODEL, CLIP and VAE of a checkpoint, in the host's form."""

    model: Any
    clip: Any
    vae: Any


def extend(config: Config) -> None:
    """Runs the Python files that make more models known to ComfyUI."""
    for name in config.models.extensions:
        path = file_of(config, name, (), "models.extensions")
        if not run_extension(path):
            raise ConfigError(f"models.extensions names {path}, which is no Python file.")


def file_of(config: Config, name: str, folders: Sequence[str], key: str) -> Path:
    """The file that a setting names: a path, or a name in one of ComfyUI's model folders.

    Args:
        folders: those that the node which loads such a file looks in.

    Raises:
        ConfigError: there is none.
    """
    if not name:
        raise ConfigError(f"{key} is empty. Name a file.")
    path = config.path(name)
    if path.is_file():
        return path
    for folder in folders:
        if found := folder_paths.get_full_path(folder, name):
            return Path(found)
    nor = "".join(f", nor one in models/{folder}" for folder in folders)
    raise ConfigError(f"{key} names '{name}', but there is no {path}{nor}.")


def load_base(config: Config) -> Loaded:
    """The base model with its text encoder and VAE."""
    path = file_of(config, config.models.checkpoint, ["checkpoints"], "models.checkpoint")
    try:
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(path))
    except RuntimeError as error:
        raise ConfigError(f"models.checkpoint names {path}, which is no checkpoint that ComfyUI knows.") from error
    return Loaded(model, clip, load_vae(config, vae))


def load_vae(config: Config, own: Any) -> Any:
    """The VAE that the configuration names, or else a checkpoint's own."""
    if config.models.vae:
        path = file_of(config, config.models.vae, ["vae"], "models.vae")
        own = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path), safe_load=True))
    if own is None or own.first_stage_model is None:  # ComfyUI makes an empty one of weights without a VAE
        raise ConfigError(f"{config.models.vae or 'The checkpoint'} has no VAE. Name one as models.vae.")
    return own


def load_vision(config: Config) -> Any:
    """The vision encoder, as CLIPVisionLoader gives it, or as `load_clip_vision(path)` of an extension does."""
    path = file_of(config, config.models.clip_vision, ["clip_vision"], "models.clip_vision")
    for name in config.models.extensions:
        load = getattr(sys.modules[Path(name).stem], "load_clip_vision", None)
        if load and (loaded := load(path)) is not None:
            return loaded
    loaded = comfy.clip_vision.load(str(path))
    if loaded is None:
        raise ConfigError(f"models.clip_vision names {path}, which is no vision encoder that ComfyUI knows.")
    return loaded


def conditioning(clip: Any, text: str) -> list[Any]:
    """A text in the host's form.

    Raises:
        ConfigError: the checkpoint has no text encoder.
    """
    if clip is None:
        raise ConfigError("models.checkpoint has no text encoder. Name a whole checkpoint.")
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


class Memory:
    """Tensors that are made once, and kept while there is room.

    Args:
        most: bytes.
    """

    def __init__(self, most: int = 1 << 30) -> None:
        self._left, self._known = most, dict[object, Tensor]()

    def get(self, key: object, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of a key, on the CPU and fit for gradients, which what ComfyUI's nodes make is not."""
        if key in self._known:
            return self._known[key]
        made = make().float().cpu().detach().clone()
        if made.nbytes <= self._left:
            self._left -= made.nbytes
            self._known[key] = made
        return made


class Encoder:
    """A VAE whose latents are as the U-Net takes them, and remembered."""

    def __init__(self, vae: Any, latent_format: Any) -> None:
        self._vae, self._format, self._memory = vae, latent_format, Memory()

    def __call__(self, picture: Tensor, key: object) -> Tensor:
        """(1, H, W, 3) in [0, 1] -> (1, c, H / 8, W / 8) on the CPU.

        Args:
            key: tells the picture from all others.
        """

        def make() -> Tensor:
            with torch.inference_mode():
                return self._format.process_in(self._vae.encode(picture).float().cpu())

        return self._memory.get(key, make)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, H, W, 3) in [0, 1] on the CPU."""
        with torch.inference_mode():
            pictures = self._vae.decode(self._format.process_out(latents.float().cpu()))
        return pictures.float().cpu().clone()
