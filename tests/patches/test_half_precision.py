"""Methods in real half precision, which the host would cast to float32 on a CPU, against float32."""

from __future__ import annotations

import functools

import pytest
import torch
from every_method import EveryMethod, allowed, error
from torch import Tensor

NAMES = EveryMethod(torch.float32).names


@functools.cache
def picture(name: str, dtype: torch.dtype) -> Tensor:
    return EveryMethod(dtype).picture(name)


# bfloat16, in which CPUs are slow, once for each kind of family
CASES = [(torch.float16, name) for name in NAMES if not name.startswith("plain")]
CASES += [
    (torch.bfloat16, name) for name in NAMES if not name.startswith("plain") and name.endswith((".sd15", ".wan21"))
]


@pytest.mark.parametrize(("dtype", "name"), CASES, ids=lambda value: str(value).removeprefix("torch."))
def test_a_method_adds_no_error_to_the_models_own(dtype: torch.dtype, name: str) -> None:
    plain = f"plain.{name.split('.')[1]}"
    own = error(picture(plain, dtype), picture(plain, torch.float32))
    got = error(picture(name, dtype), picture(name, torch.float32))
    assert got <= allowed(name, dtype, own), (got, own)
