"""Every architecture that the host knows is in the table of families, or has a reason not to be."""

from __future__ import annotations

import re
from pathlib import Path

import comfy.supported_models
import family_table
import pytest
from architectures import architecture_of, pictures
from families import FAMILIES, tiny_model
from refattention.core.patches.families.table import LAYOUTS, REASONS, key_of

UNET = "modules.diffusionmodules.openaimodel.UNetModel"
HELP = Path(__file__).parents[2] / "web" / "docs"


@pytest.mark.parametrize("config", comfy.supported_models.models, ids=lambda config: config.__name__)
def test_every_architecture_is_in_the_table_or_has_a_reason(config: type) -> None:
    key = key_of(architecture_of(config))
    assert (key == UNET) + (key in LAYOUTS) + (key in REASONS) == 1


def test_nine_of_ten_for_pictures_and_videos_are_in_the_table() -> None:
    there = [key_of(architecture_of(config)) not in REASONS for config in pictures()]
    assert sum(there) / len(there) >= 0.9


def test_the_tables_name_only_what_the_host_has() -> None:
    known = {key_of(architecture_of(config)) for config in comfy.supported_models.models}
    assert known == {UNET, *LAYOUTS, *REASONS}


def test_every_line_of_the_table_has_a_tiny_model_that_it_is_tested_on() -> None:
    tested = {key_of(type(tiny_model(name).model.diffusion_model)) for name in FAMILIES}
    assert set(LAYOUTS) <= tested


def test_reasons_are_one_clause_each() -> None:
    for reason in REASONS.values():
        assert re.fullmatch(r"[a-z][^.]+", reason)


def test_the_help_pages_list_the_families() -> None:
    every, videos = ((HELP / f"RefDrop{name}.md").read_text(encoding="utf-8") for name in ("Apply", "Video"))
    for layout in LAYOUTS.values():
        for name in layout.name.split(", "):
            assert name in every
            assert not layout.is_video or name in videos


def test_the_page_is_what_the_code_says() -> None:
    assert family_table.PAGE.read_text(encoding="utf-8") == family_table.page(), "run dev/family_table.py"
