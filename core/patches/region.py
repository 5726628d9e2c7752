"""Masks over the generated picture: where in it a method acts."""

from __future__ import annotations

from torch import Tensor

from ..kernels.masks import token_weights
from .attention import AttentionCall


def check_mask_batch(mask: Tensor | None, batch: int, method: str) -> None:
    """Checks that there is one mask (B, H, W) for all samples of a batch, or one for each.

    Raises:
        ValueError: another number of masks.
    """
    if mask is not None and len(mask) not in (1, batch):
        raise ValueError(
            f"{method}: mask holds {len(mask)} masks for a batch of {batch}. Give one mask for all samples, or one for "
            "each."
        )


def require_whole_picture(x: Tensor, latent_size: tuple[int, ...], method: str) -> None:
    """Checks that a forward pass sees all of the picture that a mask lies over.

    Args:
        x: (B, C, ..., h, w), what the model is given.
        latent_size: (h, w) of what is sampled.

    Raises:
        RuntimeError: it sees a part.
    """
    if tuple(x.shape[-2:]) != latent_size:
        raise RuntimeError(
            f"{method}: the model was given a part of the picture, {x.shape[-2]} x {x.shape[-1]} of {latent_size[0]} x "
            f"{latent_size[1]} latents, and a mask over the whole picture cannot be used there. Remove what cuts the "
            "picture into parts (prompts limited to an area, tiled sampling), or the mask of this node."
        )


def region_weights(mask: Tensor, call: AttentionCall, method: str) -> Tensor:
    """A mask (B, H, W) as one weight for each query token of an attention: (B, frames * h * w, 1).

    Raises:
        RuntimeError: another patch left fewer tokens than the grid has.
    """
    if call.q.shape[1] != call.frames * call.grid[0] * call.grid[1]:
        raise RuntimeError(
            f"{method}: the mask needs the {call.grid[0]} x {call.grid[1]} tokens of block {call.block}, but another "
            f"patch left {call.q.shape[1]} of them. Remove token merging or tiling, or the mask."
        )
    return token_weights(mask.float(), call.grid).repeat(1, call.frames, 1).to(call.q.device)
