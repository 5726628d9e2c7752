"""The gate for pictures and masks of other nodes: all methods get one form of them, or a sentence says why not.

Other nodes hand over any floating-point type (`--fp16-intermediates` gives float16), bytes, one to four channels, masks
without a batch, numbers outside of 0 … 1 (resizing by a bicubic filter does that) and values that are not numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHANNELS = (1, 3, 4)
BYTE = 255
SLACK = 0.5  # what a filter overshoots by at most; more than that is another range


def picture(image: Any, name: str) -> Tensor:
    """An IMAGE as every method takes it; one that is in this form already comes back as it is.

    Args:
        image: (B, H, W, C) or (H, W, C); one channel stands for all three, the fourth, alpha, is dropped.
        name: of the input, for messages.

    Returns:
        (B, H, W, 3) float32 on the CPU, in [0, 1].

    Raises:
        ValueError: no picture, another number of channels, NaN or infinity, or numbers of another range.
    """
    image = _tensor(image, name, "a picture")
    if image.ndim == 3:
        image = image.unsqueeze(0)
    if image.ndim != 4 or image.shape[-1] not in CHANNELS or not image.numel():
        raise ValueError(
            f"{name} has the shape {tuple(image.shape)}, but a picture of (batch, height, width, channels) with 1, 3 "
            "or 4 channels is needed."
        )
    values = _numbers(image[..., :3], name, BYTE)
    low, high = _range(values, name)
    if (low < -SLACK or high > 1 + SLACK) and _mostly_outside(values):
        raise ValueError(
            f"{name} is a picture whose numbers go from {low:.3g} to {high:.3g}, but they must lie between 0 and 1. "
            "Scale them to that range."
        )
    # Contiguous, because in another memory layout libraries add up in another order.
    return _clamped(values, low, high).expand(-1, -1, -1, 3).contiguous()


def masks(mask: Any, name: str) -> Tensor:
    """A MASK as every method takes it; one that is in this form already comes back as it is.

    Args:
        mask: (B, H, W), (H, W), (B, 1, H, W) or (B, H, W, 1); booleans, floats, or integers up to 1 or 255.
        name: of the input, for messages.

    Returns:
        (B, H, W) float32 on the CPU, in [0, 1].

    Raises:
        ValueError: no mask, or NaN or infinity in it.
    """
    mask = _tensor(mask, name, "a mask")
    if mask.ndim == 2:
        mask = mask.unsqueeze(0)
    if mask.ndim == 4 and 1 in (mask.shape[1], mask.shape[3]):
        mask = mask.squeeze(1 if mask.shape[1] == 1 else 3)
    if mask.ndim != 3 or not mask.numel():
        raise ValueError(f"{name} has the shape {tuple(mask.shape)}, but a mask of (batch, height, width) is needed.")
    values = _numbers(mask, name, 1, BYTE)
    return _clamped(values, *_range(values, name)).contiguous()


def optional_masks(mask: Any, name: str) -> Tensor | None:
    """As `masks`, for an input that may be unconnected."""
    return None if mask is None else masks(mask, name)


def region(mask: Any, name: str) -> Tensor | None:
    """As `optional_masks`, for where in the generated picture a node acts.

    Raises:
        ValueError: also for masks that are all black: the node would act nowhere.
    """
    found = optional_masks(mask, name)
    if found is not None and not found.any():
        raise ValueError(
            f"{name} is all black, as Load Image gives it for a picture without transparency, so the node would act "
            "nowhere. Make white where it is to act, or leave the input unconnected."
        )
    return found


def one_picture(image: Any, name: str) -> Tensor:
    """As `picture`, (1, H, W, 3).

    Raises:
        ValueError: also for a batch.
    """
    image = picture(image, name)
    if len(image) != 1:
        raise ValueError(f"{name} holds {len(image)} pictures, but one is needed. Select one of the batch.")
    return image


def require_numbers(latent: Tensor, name: str) -> None:
    """Refuses a latent of NaN or infinity, which would make a black picture.

    Raises:
        ValueError: it holds some.
    """
    if not latent.isfinite().all():
        raise ValueError(
            f"{name} holds NaN or infinity in place of numbers. A VAE that computes in half precision may give them: "
            "start ComfyUI with --fp32-vae, or connect another VAE of the model."
        )


def _tensor(given: Any, name: str, what: str) -> Tensor:
    if not isinstance(given, Tensor) or given.is_complex():
        kind = str(given.dtype).removeprefix("torch.") if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"{name} is of the type {kind}, but {what} is needed.")
    return given.detach()


def _numbers(values: Tensor, name: str, *whites: int) -> Tensor:
    """float32 on the CPU; of whole numbers, the first white that none is above is 1."""
    numbers = values.cpu().float()  # first: torch can hardly compare some of the types of whole numbers
    if values.is_floating_point() or values.dtype == torch.bool:
        return numbers
    highest = numbers.max()
    white = next((each for each in whites if highest <= each), None)
    if white is None:
        raise ValueError(f"{name} holds whole numbers up to {highest:.0f}, but at most {BYTE} is needed, or 0 to 1.")
    return numbers / white


def _range(values: Tensor, name: str) -> tuple[float, float]:
    low, high = (each.item() for each in values.aminmax())
    if not -float("inf") < low <= high < float("inf"):
        raise ValueError(f"{name} holds NaN or infinity in place of numbers. Check the node that it comes from.")
    return low, high


def _mostly_outside(values: Tensor) -> bool:
    return 2 * int(((values < -SLACK) | (values > 1 + SLACK)).sum()) > values.numel()


def _clamped(values: Tensor, low: float, high: float) -> Tensor:
    return values if low >= 0 and high <= 1 else values.clamp(0, 1)
