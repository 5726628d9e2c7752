"""From pictures to what a sampler takes: model, conditionings and an empty latent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..pictures import gate
from ..pictures.grid import CELL, binary_mask, pad_to_cells, to_cells
from .body_map import POSE_TRANSFER, TRY_ON, check, require_task
from .model import LeffaModel, require_leffa
from .reference import REFERENCES, Reference
from .settings import LeffaSettings
from .wrappers import apply_leffa

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE

GREY = 0.5  # what the models see in place of the pixels that are to be painted

# (model, positive, negative, latent), as ComfyUI's samplers take them
Outputs = tuple["ModelPatcher", list[Any], list[Any], dict[str, Tensor]]


@dataclass(frozen=True)
class Leffa:
    """What is loaded: a Leffa model with its reference U-Net, and the VAE that goes with it."""

    patcher: ModelPatcher
    vae: VAE

    @property
    def model(self) -> LeffaModel:
        """The generative model."""
        return self.patcher.model

    def encode(self, picture: Tensor) -> Tensor:
        """(B, H, W, C) in [0, 1] -> (B, 4, h, w) as the U-Net takes it, on the CPU.

        Raises:
            ValueError: the VAE makes latents of another shape, or of what is no number.
        """
        padded = pad_to_cells(picture[..., :3])
        latent = self.vae.encode(padded)
        channels = self.model.latent_format.latent_channels
        expected = (len(padded), channels, padded.shape[1] // CELL, padded.shape[2] // CELL)
        if tuple(latent.shape) != expected:
            raise ValueError(
                f"vae makes latents of the shape {tuple(latent.shape)} where Leffa needs {expected}. "
                "Connect the VAE of Leffa Loader, or an SD1.5 VAE (SDXL for pose transfer)."
            )
        gate.require_numbers(latent, "What vae makes of a picture")
        return self.model.process_latent_in(latent.float().cpu())


def leffa(patcher: ModelPatcher, vae: VAE, node: str) -> Leffa:
    """What a node got connected.

    Raises:
        RuntimeError: the model is not Leffa's.
    """
    require_leffa(patcher, node)
    return Leffa(patcher, vae)


def try_on(
    loaded: Leffa, image: Tensor, mask: Tensor, densepose: Tensor, garment_image: Tensor, settings: LeffaSettings
) -> Outputs:
    """Inputs for dressing persons.

    Args:
        image: (B, H, W, C) in [0, 1], the persons.
        mask: (B, h, w) in [0, 1], 1 is repainted.
        densepose: (B, H, W, C) in [0, 1].
        garment_image: (B, any size, C) in [0, 1].

    Raises:
        ValueError: the checkpoint is for pose transfer, a mask is empty, or densepose is of another kind than the
            checkpoint needs.
    """
    require_task(loaded.model.body_map, TRY_ON, "Leffa Try-On")
    check(densepose, loaded.model.body_map)
    binary = binary_mask(mask, size_of(image))
    if not binary.flatten(1).any(dim=1).all():
        raise ValueError("mask is empty, so nothing would be painted. Make the garment's area white.")
    masked = torch.where(binary.unsqueeze(-1) > 0, torch.tensor(GREY), image[..., :3].cpu())
    return _outputs(loaded, masked, binary, densepose, garment_image, settings)


def pose_transfer(loaded: Leffa, reference_image: Tensor, densepose: Tensor, settings: LeffaSettings) -> Outputs:
    """Inputs for persons in another pose, of whose picture no pixel is kept. As `try_on`."""
    require_task(loaded.model.body_map, POSE_TRANSFER, "Leffa Pose Transfer")
    check(densepose, loaded.model.body_map)
    nothing = torch.full((1, *size_of(densepose), 3), GREY)
    everything = torch.ones(1, *size_of(densepose))
    return _outputs(loaded, nothing, everything, densepose, reference_image, settings)


def size_of(picture: Tensor) -> tuple[int, int]:
    """(height, width)."""
    return picture.shape[1], picture.shape[2]


def _outputs(
    loaded: Leffa, masked: Tensor, mask: Tensor, densepose: Tensor, reference_image: Tensor, settings: LeffaSettings
) -> Outputs:
    """From pictures of one size and a reference of any size."""
    inputs = [
        to_cells(pad_to_cells(mask.unsqueeze(-1))),
        loaded.encode(masked),
        to_cells(pad_to_cells(densepose[..., :3].cpu())) * 2 - 1,
    ]
    persons = max(map(len, inputs))
    # Channel by channel as the U-Net takes them, after the noisy latent
    concat = torch.cat([one.expand(persons, -1, -1, -1) for one in inputs], dim=1)
    references = [Reference(latent) for latent in loaded.encode(reference_image)]
    zero = Reference(torch.zeros_like(references[0].latent), is_zero=True)
    channels = len(zero.latent)
    latent = torch.zeros(max(persons, len(references)), channels, *concat.shape[-2:])
    return (
        apply_leffa(loaded.patcher, settings),
        _conditioning(concat, references),
        _conditioning(concat, [zero]),
        {"samples": latent},
    )


def _conditioning(concat: Tensor, references: list[Reference]) -> list[Any]:
    """In ComfyUI's form; there is no text, so a zero that nothing reads takes its place."""
    return [[torch.zeros(1, 1, 1), {"noise_concat": concat, REFERENCES: tuple(references)}]]
