"""Pictures and masks of every type of whole numbers that torch has, some of which it can hardly compute with."""

from __future__ import annotations

import pytest
import torch
from refattention.core.pictures import gate

TYPES = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.int64)


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_whole_numbers_of_any_type(kind: torch.dtype) -> None:
    most = 127 if kind == torch.int8 else 255
    values = torch.tensor([[0, 1, 2], [3, 100, most]])
    want = values.float() / 255
    assert torch.equal(gate.picture(values.to(kind)[None, ..., None], "image")[0, ..., 1], want)
    assert torch.equal(gate.masks(values.to(kind), "mask")[0], want)
    assert torch.equal(gate.masks((values > 2).to(kind), "mask")[0], (values > 2).float())


def test_more_than_a_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="image holds whole numbers up to 40000, but at most 255 is needed"):
        gate.picture(torch.full((1, 2, 2, 3), 40000).to(torch.uint16), "image")
