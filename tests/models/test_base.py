"""Fingerprints of base models: the same in any precision, another for another model."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from refattention.core.models.base import PREFIX, fingerprint, is_of, unet_weights
from sampling import held_in, model

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


def fine_tuned(patcher: Any, change: float, seed: int = 0) -> Any:
    """Each number another by a part of itself."""
    other, generator = held_in(patcher, torch.float32), torch.Generator().manual_seed(seed)
    for weight in other.model.diffusion_model.state_dict().values():
        weight.mul_(1 + change * torch.randn(weight.shape, generator=generator))
    return other


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_precision_makes_another_model(dtype: torch.dtype) -> None:
    plain = model("sd15")
    held = held_in(plain, dtype)
    assert is_of(held, fingerprint(plain)) and is_of(plain, fingerprint(held))
    other = held_in(fine_tuned(plain, 0.5), dtype)
    assert not is_of(other, fingerprint(plain)) and not is_of(plain, fingerprint(other))


def test_a_small_change_is_seen_where_nothing_is_in_8_bits() -> None:
    plain = model("sd15")
    assert not is_of(held_in(fine_tuned(plain, 0.03), torch.float16), fingerprint(held_in(plain, torch.bfloat16)))
    assert not is_of(model("sdxl"), fingerprint(plain))


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
