"""The `blocks` and `custom_blocks` widgets."""

from __future__ import annotations

import pytest
from refattention.core.patches.blocks import ALL, CUSTOM, SKIP_FIRST_OUTPUT, layer_name, select, select_layers

SD15 = [("input", n) for n in (1, 2, 4, 5, 7, 8)] + [("middle", 0)] + [("output", n) for n in range(3, 12)]


def test_all() -> None:
    assert select(ALL, "ignored", SD15, "SD15") == set(SD15)


def test_the_paper_skips_the_first_output_block_that_has_attention() -> None:
    assert set(SD15) - select(SKIP_FIRST_OUTPUT, "", SD15, "SD15") == {("output", 3)}


def test_custom_names_and_sides() -> None:
    assert select(CUSTOM, " input.4,middle , output.11,", SD15, "SD15") == {("input", 4), ("middle", 0), ("output", 11)}


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"'output\.2', which has no self-attention in this SD15 model.*output\.3, "):
        select(CUSTOM, "input.4, output.2", SD15, "SD15")


def test_no_name() -> None:
    with pytest.raises(ValueError, match="custom_blocks is empty, but blocks is set to 'custom'"):
        select(CUSTOM, " , ", SD15, "SD15")


SDXL_LAYERS = [(("input", 4), n) for n in range(2)] + [
    (("output", block), n) for block in range(6) for n in range(10 if block < 3 else 2)
]


def test_default_layers_are_the_decoders_first_six_blocks() -> None:
    layers = [(block, 0) for block in SD15]
    assert select_layers("", layers, "SD15") == {(("output", n), 0) for n in range(3, 9)}
    assert select_layers(" , ", SDXL_LAYERS, "SDXL") == set(SDXL_LAYERS[2:])


def test_layers_by_side_block_and_number() -> None:
    assert len(select_layers("output", SDXL_LAYERS, "SDXL")) == 36
    chosen = select_layers("input.4, output.1.7", SDXL_LAYERS, "SDXL")
    assert sorted(map(layer_name, chosen)) == ["input.4.0", "input.4.1", "output.1.7"]
    with pytest.raises(ValueError, match=r"layers names 'output\.1\.10', which has no self-attention in this SDXL"):
        select_layers("output.1.10", SDXL_LAYERS, "SDXL")
