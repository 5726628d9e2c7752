"""The `blocks` and `custom_blocks` widgets."""

from __future__ import annotations

import pytest
from refattention.core.blocks import ALL, CUSTOM, SKIP_FIRST_OUTPUT, select

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
