"""The user's models, by ComfyUI's own loaders."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.sd
import comfy.utils
import folder_paths
import torch
from torch import Tensor
from torch.nn import functional as F

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
        path = file_of(config, name, "", "models.extensions")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ConfigError(f"models.extensions names {path}, which is no Python file.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)


def file_of(config: Config, name: str, folder: str, key: str) -> Path:
    """The file that a setting names: a path, or a name in one of ComfyUI's model folders.

    Raises:
        ConfigError: there is none.
    """
    if not name:
        raise ConfigError(f"{key} is empty. Name a file.")
    path = config.path(name)
    if path.is_file():
        return path
    if folder and (found := folder_paths.get_full_path(folder, name)):
        return Path(found)
    raise ConfigError(f"{key} names '{name}', but there is no {path}{f', nor one in models/{folder}' if folder else ''}.")


def load_base(config: Config) -> Loaded:
    """The base model with its text encoder and VAE."""
    path = file_of(config, config.models.checkpoint, "checkpoints", "models.checkpoint")
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(path))
    return Loaded(model, clip, load_vae(config, vae))


def load_vae(config: Config, own: Any) -> Any:
    """The VAE that the configuration names, or else a checkpoint's own."""
    if config.models.vae:
        path = file_of(config, config.models.vae, "vae", "models.vae")
        return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path), safe_load=True))
    if own is None:
        raise ConfigError("The checkpoint has no VAE. Name one as models.vae.")
    return own


def load_vision(config: Config) -> Any:
    """The vision encoder, as CLIPVisionLoader gives it."""
    path = file_of(config, config.models.clip_vision, "clip_vision", "models.clip_vision")
    loaded = comfy.clip_vision.load(str(path))
    if loaded is None:
        raise ConfigError(f"models.clip_vision names {path}, which is no vision encoder that ComfyUI knows.")
    return loaded


def conditioning(clip: Any, text: str) -> list[Any]:
    """A text in the host's form."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


class Encoder:
    """A VAE that remembers latents: pictures that are seen again are not encoded again.

    Args:
        most: bytes it may remember.
    """

    def __init__(self, vae: Any, scale: Any, most: int = 2 << 30) -> None:
        self._vae, self._scale, self._left = vae, scale, most
        self._known: dict[object, Tensor] = {}

    def __call__(self, picture: Tensor, key: object = None) -> Tensor:
        """(1, H, W, 3) in [0, 1] -> (1, c, H / 8, W / 8) on the CPU, as the U-Net takes it.

        Args:
            key: tells the picture from all others; None = it is not seen again.
        """
        if key is not None and key in self._known:
            return self._known[key]
        with torch.inference_mode():
            latent = self._scale(self._vae.encode(picture).float().cpu())
        latent = latent.detach().clone()
        if key is not None and latent.nbytes <= self._left:
            self._left -= latent.nbytes
            self._known[key] = latent
        return latent

    def decode(self, latents: Tensor, unscale: Any) -> Tensor:
        """(B, c, h, w) -> (B, H, W, 3) in [0, 1] on the CPU."""
        with torch.inference_mode():
            return self._vae.decode(unscale(latents.float().cpu())).float().cpu().clone()


def thumbnail(latent: Tensor) -> Tensor:
    """A mask (1, h, w) as a grey picture (8 h, 8 w, 3)."""
    return F.interpolate(latent[None], scale_factor=8)[0].movedim(0, -1).expand(-1, -1, 3)
