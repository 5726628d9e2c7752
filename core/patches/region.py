"""Masks over the generated picture: where in it a method acts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..kernels.masks import token_weights
from .attention import AttentionCall
from .conditionings import Cond
from .node_text import warn
from .passes import Asked, rearranger

STRETCHED = 1.1  # more than the sides of a picture are rounded by on their way to latents


def check_mask(mask: Tensor | None, sampled: Sequence[int], method: str) -> None:
    """Checks that a mask (B, H, W) fits what is sampled; one of another shape is stretched, of which the user is told.

    It may then be that only a part of the picture is sampled.

    Args:
        sampled: shape of the latent, (B, ..., h, w).

    Raises:
        ValueError: there is neither one mask for all samples of the batch nor one for each.
    """
    if mask is None:
        return
    if len(mask) not in (1, sampled[0]):
        raise ValueError(
            f"{method}: mask holds {len(mask)} masks for a batch of {sampled[0]}. Give one mask for all samples, or "
            "one for each."
        )
    (height, width), (rows, columns) = mask.shape[1:], sampled[-2:]
    if max(height * columns, width * rows) > STRETCHED * min(height * columns, width * rows):
        warn(
            f"{method}: mask is {width} x {height}, but what is sampled has {columns} x {rows} latents, so the mask is "
            "stretched. If it is a part of the picture (a detailer, tiles), give it a model without the mask."
        )


def require_whole_picture(x: Tensor, asked: Asked, latent_size: tuple[int, ...], method: str) -> None:
    """Checks that a forward pass sees all of the picture that a mask lies over.

    Args:
        x: (B, C, ..., h, w), what the model is given.
        asked: the evaluation that the pass belongs to.
        latent_size: (h, w) of what is sampled.

    Raises:
        RuntimeError: it sees a part; names what cut it out.
    """
    if tuple(x.shape[-2:]) != latent_size:
        raise RuntimeError(
            f"{method}: {what_cuts(asked, latent_size)} has the model work on {x.shape[-2]} x {x.shape[-1]} latents "
            f"instead of {latent_size[0]} x {latent_size[1]}, and a mask over the whole picture cannot be used there. "
            "Remove that, or the mask of this node."
        )


def is_cut_by_others(x: Tensor, asked: Asked) -> bool:
    """Whether a forward pass sees a part of the frames, or of the places that no prompt is limited to.

    Args:
        x: (B, C, ..., h, w), what the model is given.
        asked: the evaluation that the pass belongs to.
    """
    frames, places = x.shape[2:-2], x.shape[-2:]
    whole = asked.latents.shape
    return frames != whole[2:-2] or (places != whole[-2:] and not _areas(asked))


def what_cuts(asked: Asked, latent_size: tuple[int, ...]) -> str:
    """Names what has the model work on another height and width than those of what is sampled."""
    if tuple(asked.latents.shape[-2:]) != latent_size:
        return "the sampler (SamplerLCMUpscale, one that works in tiles)"
    areas = _areas(asked)
    if areas:
        return "a prompt whose mask is set to 'mask bounds'" if "mask" in areas[0] else "a prompt limited to an area"
    return f"another node of this model ({rearranger(asked.model_options) or 'tiled sampling'})"


def _areas(asked: Asked) -> list[Cond]:
    return [entry for entries in asked.conds for entry in entries or () if "area" in entry]


def require_all_pictures(asked: Asked, pictures: Sequence[int], method: str, why: str, cure: str) -> None:
    """Checks that an evaluation is of all pictures of the batch, or of all frames of the video.

    Args:
        pictures: shape of what is sampled without height and width, (B, C, ...).
        why: they are needed, for the message.
        cure: what to do about it, for the message.

    Raises:
        RuntimeError: it is of a part of them, as with ComfyUI's context windows.
    """
    # A window of all pictures but one, with one that ComfyUI puts before it, is as long as the whole.
    if tuple(asked.latents.shape[:-2]) != tuple(pictures) or "context_window" in asked.options:
        raise RuntimeError(
            f"{method}: another node (Context Windows) has the model see a part of the batch or video at a time, "
            f"{why}. {cure}, or remove that node."
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
