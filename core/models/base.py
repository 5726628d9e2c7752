"""What an adapter needs to know of the base model it is trained for and used with."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.model_patcher
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ..patches.node_text import warn

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

PREFIX = "diffusion_model."
SAMPLES = 256  # numbers of a weight of which a fingerprint has the largest
LOOKED_AT = 8  # of them that it has themselves
# How far a number may be from itself in another precision: as a part of itself, as a part of the largest of its weight,
# and at least. "full": in float32, float16 and bfloat16, of which float16 has no smaller steps than that; "low": in
# float8, scaled or not, and int8; "four" bits.
ROUNDING = {"full": (2**-7, 0.0, 2**-24), "low": (2**-3, 2**-6, 2**-9), "four": (2**-3, 2**-2, 2**-9)}


def storage_dtype(model: ModelPatcher) -> torch.dtype:
    """The type of an adapter's weights: the model's own, unless that is a quantised one."""
    dtype = model.model.get_dtype()
    return dtype if dtype in (torch.float16, torch.bfloat16, torch.float32) else torch.float16


def unet_weights(model: ModelPatcher) -> dict[str, Tensor]:
    """The weights of a model's U-Net by their names in it."""
    return {name.removeprefix(PREFIX): weight for name, weight in model.model_state_dict(PREFIX).items()}


def patched_weights(model: ModelPatcher) -> Callable[[str], Tensor]:
    """Gives the weights of a model's U-Net by their names in it, with the LoRAs that the model carries."""
    # While the model is loaded its weights have them already, and would get them twice.
    comfy.model_management.unload_model_and_clones(model)
    return lambda name: model.patch_weight_to_device(PREFIX + name, model.load_device, return_weight=True)


def fingerprint(model: ModelPatcher) -> str:
    """Tells U-Nets apart by some numbers of each weight, for `is_of`; a LoRA does not matter.

    Which weights there are, the precision they are held in, and of each one the largest number and a few others.
    """
    sampled = _sampled(model)
    text = base64.b64encode(_rows(sampled).view(torch.int16).numpy().tobytes()).decode()
    return f"{_kind(sampled)} {sampled.precision} {text}"


def is_of(model: ModelPatcher, known: str) -> bool:
    """Whether a fingerprint is that of a model, whatever the precisions of then and now.

    One weight is enough that differs by more than they round it.
    """
    sampled = _sampled(model)
    if " " not in known:  # from before fingerprints allowed for rounding
        return known == _exact(sampled)
    kind, *more = known.split(" ")
    if kind != _kind(sampled) or len(more) != 2 or more[0] not in ROUNDING:
        return False
    precision, text = more
    one, other = _rows(sampled).float(), _numbers(text, len(sampled.numbers))
    if other is None:  # a damaged file's
        return False
    shared = min(one.shape[1], other.shape[1])  # fingerprints had the largest alone
    one, other = one[:, :shared], other[:, :shared]
    relative, of_largest, least = max(ROUNDING[sampled.precision], ROUNDING[precision])
    size = torch.maximum(one.abs(), other.abs())
    allowed = relative * size + (of_largest * size[:, :1]).clamp(min=least)
    return bool(((one - other).abs() <= allowed).all())


@dataclass(frozen=True)
class _Sampled:
    """Some numbers of each weight of a U-Net.

    Attributes:
        numbers: name, shape, and numbers in bfloat16 on the CPU, in the order of the names.
        precision: the lowest that one is held in, as in `ROUNDING`.
    """

    numbers: list[tuple[str, tuple[int, ...], Tensor]]
    precision: str


def _kind(sampled: _Sampled) -> str:
    """Which weights there are."""
    return hashlib.sha256(repr([(name, shape) for name, shape, _ in sampled.numbers]).encode()).hexdigest()[:16]


def _rows(sampled: _Sampled) -> Tensor:
    """For each weight the largest of its numbers, without a sign, and some others."""
    rows = [
        torch.cat([numbers.abs().amax()[None], numbers[torch.arange(LOOKED_AT) * len(numbers) // LOOKED_AT]])
        for *_, numbers in sampled.numbers
    ]
    return torch.stack(rows)


def _sampled(model: ModelPatcher) -> _Sampled:
    # ComfyUI keeps the weights without the LoRA in `backup` while the model is loaded with it.
    weights = {
        name: (model.backup[PREFIX + name].weight if PREFIX + name in model.backup else weight).detach()
        for name, weight in sorted(unet_weights(model).items())
    }
    chosen = {name: evenly(weight).to(torch.bfloat16) for name, weight in weights.items()}
    on_cpu: dict[str, Tensor] = {}
    for device in {numbers.device for numbers in chosen.values()}:  # one copy for all of a device
        there = {name: numbers for name, numbers in chosen.items() if numbers.device == device}
        sizes = [len(numbers) for numbers in there.values()]
        on_cpu |= zip(there, torch.cat(list(there.values())).cpu().split(sizes), strict=True)
    precision = max(map(_precision, weights.values()), key=ROUNDING.__getitem__)
    return _Sampled([(name, tuple(weight.shape), on_cpu[name]) for name, weight in weights.items()], precision)


def _precision(weight: Tensor) -> str:
    if isinstance(weight, QuantizedTensor):
        return "four" if math.prod(weight.storage_shape) < weight.numel() else "low"
    return "full" if weight.element_size() > 1 else "low"


def evenly(weight: Tensor) -> Tensor:
    """(n,), at most SAMPLES of a tensor's numbers."""
    flat = weight.flatten()
    return flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES]


def _exact(sampled: _Sampled) -> str:
    digest = hashlib.sha256()
    for name, shape, numbers in sampled.numbers:
        digest.update(f"{name} {shape}".encode())
        digest.update(numbers.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _numbers(text: str, weights: int) -> Tensor | None:
    """A row for each weight; None if a text does not hold that."""
    try:
        data = base64.b64decode(text)
    except ValueError:
        return None
    if not data or len(data) % (2 * weights):
        return None
    return torch.frombuffer(bytearray(data), dtype=torch.bfloat16).float().view(weights, -1)


def managed(model: ModelPatcher, make: Callable[..., nn.Module], weights: dict[str, Tensor]) -> ModelPatcher:
    """A network that only infers, loaded and offloaded by ComfyUI as the model is.

    Args:
        make: makes the network on a `device`; called again where ComfyUI needs a copy on another one.
        weights: of the network, which shares them.
    """
    return _managed(make, weights, model.load_device, model.offload_device)


def _managed(
    make: Callable[..., nn.Module],
    weights: dict[str, Tensor],
    load: torch.device,
    offload: torch.device,
    disable_dynamic: bool = False,
) -> ModelPatcher:
    network = make(device="meta")
    network.load_state_dict(weights, assign=True)
    network.eval().requires_grad_(False)
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(network, load_device=load, offload_device=offload)
    patcher.cached_patcher_init = (_managed, (make, weights, load, offload))
    return patcher


def require_base(model: ModelPatcher, family: str, trained_for: tuple[str, str], adapter: str, doubt: str) -> None:
    """Checks that an adapter is used with a model like the one it was trained for.

    Args:
        family: ComfyUI's name of the model's family.
        trained_for: that name, and the fingerprint, of the model it was trained for.
        adapter: the subject of the messages, for example "The adapter of 'dog'".
        doubt: what another model of the family may do, for the warning.

    Raises:
        RuntimeError: the adapter was trained for another family.
    """
    if trained_for[0] != family:
        raise RuntimeError(
            f"{adapter} was trained for a {trained_for[0]} model, but this is a {family} model. Connect a model of "
            "that family."
        )
    if not is_of(model, trained_for[1]):
        warn(f"{adapter} was trained with another {family} model than this one; {doubt}.")
