"""The copy's blocks against the host's own U-Nets."""

from __future__ import annotations

from typing import Any

import comfy.ops
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from refattention.core.p3s.layout import fed_layers, simplified, source_name, table
from refattention.core.patches.unet import self_attention_blocks
from sampling import FAMILIES, model

SD15_FEEDS = {
    "input.1": "input.1 input.2",
    "input.3": "input.4 input.5",
    "input.5": "input.7 input.8",
    "middle.0": "middle.0",
    "output.2": "output.3 output.4",
    "output.3": "output.5",
    "output.4": "output.6 output.7",
    "output.5": "output.8",
    "output.6": "output.9 output.10",
    "output.7": "output.11",
}
SDXL_FEEDS = {
    "input.3": "input.4 input.5",
    "input.5": "input.7 input.8",
    "middle.0": "middle.0",
    "output.0": "output.0 output.1",
    "output.1": "output.2",
    "output.2": "output.3 output.4",
    "output.3": "output.5",
}


def config_of(family: str) -> dict[str, Any]:
    return model(family).model.model_config.unet_config


def copy_of(config: dict[str, Any]) -> UNetModel:
    return UNetModel(**simplified(config), device=torch.device("meta"), operations=comfy.ops.disable_weight_init)


@pytest.mark.parametrize(("family", "feeds"), [("sd15", SD15_FEEDS), ("sdxl", SDXL_FEEDS)])
def test_the_table_as_written(family: str, feeds: dict[str, str]) -> None:
    def name(block: tuple[str, int]) -> str:
        return f"{block[0]}.{block[1]}"

    rows = table(config_of(family))
    assert {name(row.block): " ".join(map(name, row.feeds)) for row in rows if row.feeds} == feeds
    assert {name(row.block): name(row.source) for row in rows if row.feeds} == {
        block: fed.split()[0] for block, fed in feeds.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_self_attention_is_fed_once_by_as_many_layers_of_the_same_width(family: str) -> None:
    frozen, copied = model(family).model.diffusion_model, copy_of(config_of(family))
    layers, copied_layers = self_attention_blocks(frozen), self_attention_blocks(copied)
    rows = table(config_of(family))
    fed = [block for row in rows for block in row.feeds]
    assert sorted(fed) == sorted(layers)
    assert {row.block for row in rows if row.feeds} == set(copied_layers)
    assert fed_layers(config_of(family)) == {
        (block, depth): (row.block, depth) for row in rows for block in row.feeds for depth in range(layers[block])
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_the_copy_starts_from_one_of_its_shape(family: str) -> None:
    config = config_of(family)
    frozen, copied = model(family).model.diffusion_model.state_dict(), copy_of(config).state_dict()
    rows = table(config)
    sources = {name: source_name(name, rows) for name in copied}
    assert len(set(sources.values())) == len(sources)
    for name, source in sources.items():
        assert frozen[source].shape == copied[name].shape, name
    assert len(copied) < 0.8 * len(frozen)


def test_levels_whose_blocks_differ_in_depth() -> None:
    """As in distilled models: going up, the host lists a level's blocks backwards."""
    uneven = {**config_of("sdxl"), "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4]}
    assert simplified(uneven)["transformer_depth"] == [0, 2, 10]
    assert simplified(uneven)["transformer_depth_output"] == [0, 0, 1, 2, 10, 4]
    feeds = fed_layers(uneven)
    assert feeds[("output", 2), 9] == (("output", 1), 9)
    assert feeds[("output", 5), 0] == (("output", 3), 0)
    assert feeds[("output", 4), 0] == (("output", 2), 0)
    shallow = {**config_of("sdxl"), "transformer_depth": [0, 0, 1, 2, 10, 10]}
    assert [fed_layers(shallow)[("input", 5), depth] for depth in (0, 1)] == [(("input", 3), 0)] * 2
