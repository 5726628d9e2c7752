"""Fingerprints of base models: the same in any precision, another for another model."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from families import tiny_model
from refattention.core.models.base import PREFIX, fingerprint, is_of, unet_weights
from sampling import held_in, model

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


def fine_tuned(patcher: Any, change: float, only: str = "") -> Any:
    """Each number another by a part of itself, in weights whose name ends so."""
    other, generator = held_in(patcher, torch.float32), torch.Generator().manual_seed(0)
    for name, weight in other.model.diffusion_model.state_dict().items():
        if name.endswith(only):
            weight.mul_(1 + change * torch.randn(weight.shape, generator=generator))
    return other


def merged(patcher: Any, change: float, name: str) -> Any:
    """With a LoRA of rank 4 in one weight, of so much of its size."""
    other, generator = held_in(patcher, torch.float32), torch.Generator().manual_seed(0)
    weight = other.model.diffusion_model.state_dict()[name]
    down, up = (torch.randn(*shape, generator=generator) for shape in ((4, weight.shape[1]), (weight.shape[0], 4)))
    delta = up @ down
    weight.add_(change * weight.norm() / delta.norm() * delta)
    return other


def differ(one: Any, other: Any) -> bool:
    """Whichever of the two is known."""
    found = {is_of(one, fingerprint(other)), is_of(other, fingerprint(one))}
    assert len(found) == 1
    return not found.pop()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_precision_makes_another_model(dtype: torch.dtype) -> None:
    held = held_in(model("sd15"), dtype)
    assert not any(differ(held, held_in(model("sd15"), other)) for other in DTYPES[DTYPES.index(dtype) :])
    assert differ(held_in(fine_tuned(model("sd15"), 0.5), dtype), model("sd15"))


@pytest.mark.parametrize("layout", ["TensorCoreFP8Layout", "TensorWiseINT8Layout", "TensorCoreNVFP4Layout"])
def test_no_quantisation_makes_another_model(layout: str) -> None:
    plain = tiny_model("qwen")
    assert not differ(quantised(plain, layout), plain)
    assert differ(quantised(fine_tuned(plain, 3.0), layout), plain)


def quantised(patcher: Any, layout: str) -> Any:
    """Matrices that a layout can hold, as files of quantised models have them."""
    other = held_in(patcher, torch.float32)
    for module in other.model.diffusion_model.modules():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.ndim == 2 and not (weight.shape[0] % 16 or weight.shape[1] % 16):
            held = QuantizedTensor.from_float(weight.detach(), layout)
            module.weight = torch.nn.Parameter(held, requires_grad=False)
    return other


ONE_LAYER = "output_blocks.5.1.transformer_blocks.0.attn1.to_v.weight"


@pytest.mark.parametrize(
    ("change", "dtype"),
    [(0.01, torch.float16), (0.02, torch.bfloat16), (0.3, torch.float8_e4m3fn), (0.3, torch.float8_e5m2)],
    ids=str,
)
def test_one_changed_weight_makes_another_model(change: float, dtype: torch.dtype) -> None:
    """More than its precision rounds."""
    plain = model("sd15")
    for other in (merged(plain, change, ONE_LAYER), fine_tuned(plain, change, ONE_LAYER)):
        assert differ(held_in(other, dtype), plain)
    assert differ(held_in(fine_tuned(plain, 0.5, "output_blocks.5.0.in_layers.0.bias"), dtype), plain)
    assert differ(held_in(fine_tuned(plain, change), dtype), plain) and differ(model("sdxl"), plain)


def test_a_lora_does_not_matter() -> None:
    plain = model("sd15")
    before = fingerprint(plain)
    name = next(name for name in unet_weights(plain) if name.endswith("attn1.to_k.weight"))
    plain.add_patches({PREFIX + name: (torch.ones_like(plain.get_model_object(PREFIX + name)),)})
    plain.patch_model()
    try:
        assert fingerprint(plain) == before
    finally:
        plain.unpatch_model()


def test_adapters_saved_with_an_exact_fingerprint_are_known() -> None:
    """The form it had before: of all the numbers that are looked at, in bfloat16."""
    digest = hashlib.sha256()
    for name, weight in sorted(unet_weights(model("sd15")).items()):
        flat = weight.flatten()
        chosen = flat[:: max(1, len(flat) // 256)][:256].to(torch.bfloat16)
        digest.update(f"{name} {tuple(weight.shape)}".encode() + chosen.view(torch.int16).numpy().tobytes())
    assert is_of(model("sd15"), digest.hexdigest())
    assert not is_of(fine_tuned(model("sd15"), 0.1), digest.hexdigest())


def test_a_damaged_fingerprint_is_of_no_model() -> None:
    plain = model("sd15")
    kind, precision, numbers = fingerprint(plain).split(" ")
    for known in (f"{kind} {precision} {numbers[:-3]}", f"{kind} lost {numbers}", f"{kind} {numbers}", f"{kind}  "):
        assert not is_of(plain, known)
