"""Whatever works through a batch of pictures ends where Cancel is pressed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from comfy.model_management import InterruptProcessingException, interrupt_current_processing
from refattention.core.leffa import body_map, masks, parsing
from refattention.core.leffa.fit import fit
from refattention.core.leffa.repaint import paste_exact, paste_official

PICTURES = torch.full((3, 32, 32, 3), 4 / 255)  # upper clothes as a parsing map, an upper arm as DensePose

WORK: dict[str, Callable[[], torch.Tensor]] = {
    "mask": lambda: masks.from_maps(PICTURES, [None], masks.UPPER_BODY, masks.CLEAN, parsing.ATR),
    "body map": lambda: body_map.convert(PICTURES, body_map.PARULA, None, None),
    "fit": lambda: fit(PICTURES, (64, 48)),
    "exact": lambda: paste_exact(PICTURES, PICTURES, torch.ones(3, 32, 32)),
    "official": lambda: paste_official(PICTURES, PICTURES, torch.ones(3, 32, 32)),
}


@pytest.mark.parametrize("name", WORK)
def test_cancel(name: str) -> None:
    assert len(WORK[name]()) == 3
    interrupt_current_processing()
    with pytest.raises(InterruptProcessingException):
        WORK[name]()
