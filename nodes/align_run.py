"""What the nodes of Refine-by-Align run, and the checks of what they are given."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..core.patches.blocks import select_layers
from ..core.patches.unet import family, require_image_unet, self_attention_layers
from ..core.pictures.grid import binary_mask
from ..core.refine_by_align.adapter import TrainedAdapter, for_model
from ..core.refine_by_align.back_ends import BackEnd, CrossAttention, SelfAttention
from ..core.refine_by_align.match import Finding
from ..core.refine_by_align.observe import Look
from ..core.refine_by_align.reader import PatchReader
from ..core.refine_by_align.repair import Repair, Search
from ..core.refine_by_align.window import Case, Work
from .shared import mask_batch, require_latent_of


def repair(
    node: str,
    model: Any,
    vae: Any,
    positive: list[Any],
    work: tuple[float, int, int],
    adapter: TrainedAdapter | None,
    clip_vision: Any,
) -> Any:
    """Both stages for a model and its VAE, with the back end that is connected.

    Args:
        work: context, working_size and feather.

    Raises:
        RuntimeError: not an image U-Net, or an adapter for another model.
        ValueError: only one of adapter and clip_vision, or two that do not belong together; when used, also if the VAE
            is not the model's.
    """
    require_image_unet(model, node)

    def encode(picture: Tensor) -> Tensor:
        return require_latent_of(model, vae.encode(picture), "What vae makes of a picture")

    if adapter is None and clip_vision is None:
        back_end: BackEnd = SelfAttention(model, encode, positive, node)
    elif adapter is None or clip_vision is None:
        there, missing = ("adapter", "clip_vision") if clip_vision is None else ("clip_vision", "adapter")
        raise ValueError(f"{there} is connected, but {missing} is not. Connect both of them, or neither.")
    else:
        trained, network = for_model(adapter, model, family(model))
        read = PatchReader(clip_vision, network, adapter.origin)
        back_end = CrossAttention(trained, read, encode, positive, node)
    return Repair(back_end, encode, vae.decode, Work(*work))


def cases(
    node: str, image: Tensor, mask: Tensor, reference_image: Tensor, reference_mask: Tensor | None = None
) -> list[Any]:
    """The pictures of a batch, each with its mask and its reference.

    Raises:
        ValueError: masks or references that are neither one for all pictures nor one for each, or an empty reference
            mask.
    """
    images, references = (each[..., :3].cpu().float() for each in (image, reference_image))
    masks, places = binary_mask(mask, (image.shape[1], image.shape[2])), _searched(reference_mask)
    given = {"mask": len(masks), "reference_image": len(references), "reference_mask": len(places)}
    for name, count in given.items():
        if count not in (1, len(images)):
            raise ValueError(
                f"{name} is a batch of {count}, but image is one of {len(images)}. Give one for all pictures, or one "
                "for each."
            )
    return [
        Case(one, masks[at % len(masks)], references[at % len(references)].unsqueeze(0), places[at % len(places)])
        for at, one in enumerate(images.split(1))
    ]


def look(model: Any, timesteps: str, layers: str, seed: int, node: str) -> Look:
    """The alignment's settings from its widgets.

    Raises:
        ValueError: text that names no timesteps, or layers that the model does not have.
    """
    available = list(self_attention_layers(require_image_unet(model, node)))
    return Look(select_layers(layers, available, family(model)), _timesteps(timesteps), seed)


def search(node: str, model: Any, looking: tuple[str, str, int], finding: tuple[float, float, float]) -> Any:
    """How the place in the reference is found, from the widgets.

    Args:
        looking: timesteps, layers and seed.
        finding: threshold, margin and minimum_contrast.

    Raises:
        ValueError: as of `look`.
    """
    threshold, margin, minimum_contrast = finding
    found = Finding(threshold=threshold, margin=margin, minimum_contrast=minimum_contrast)
    return Search(look(model, *looking, node), found)


def _timesteps(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) <= 999 for part in parts):
        raise ValueError(f"timesteps is '{text}', but needs whole numbers from 0 to 999, such as 261 or 181, 261.")
    return tuple(map(int, parts))


def one_picture(image: Tensor, name: str) -> Tensor:
    """(1, H, W, 3) on the CPU.

    Raises:
        ValueError: a batch.
    """
    if len(image) != 1:
        raise ValueError(f"{name} holds {len(image)} pictures, but one is needed. Select one of the batch.")
    return image[..., :3].cpu().float()


def one_mask(mask: Tensor, image: Tensor) -> Tensor:
    """(H, W) of 0 and 1 at the size of the picture.

    Raises:
        ValueError: a batch.
    """
    masks = binary_mask(mask, (image.shape[1], image.shape[2]))
    if len(masks) != 1:
        raise ValueError(f"mask holds {len(masks)} masks for one picture. Give one mask; it may have several areas.")
    return masks[0]


def _searched(reference_mask: Tensor | None) -> list[Tensor] | list[None]:
    """(h, w) of each reference mask, in its own size.

    Raises:
        ValueError: one has nothing white.
    """
    masks = mask_batch(reference_mask)
    if masks is None:
        return [None]
    if not masks.flatten(1).any(1).all():
        raise ValueError("reference_mask has nothing white. Paint where to search, or leave the input unconnected.")
    return list(masks.float())


def joined(warnings: Sequence[str]) -> str:
    """The warnings of all pictures of a batch, each with the picture's number; empty ones are left out."""
    if len(warnings) == 1:
        return warnings[0]
    return " ".join(f"Picture {number}: {warning}" for number, warning in enumerate(warnings, 1) if warning)


def log_warning(node: str, warning: str) -> None:
    """Tells in the log what the output `warning` tells in the graph."""
    if warning:
        logging.getLogger(__name__).warning("%s: %s", node, warning)
