"""AttentionProbe: its maps against `attention_maps`, what the panel gets, and what wrong input is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refattention.core.patches.unet import self_attention_layers
from refattention.core.refine_by_align.kernel import group_of_mask, groups_of_points
from refattention.core.refine_by_align.observe import Look, attention_maps
from refattention.core.refine_by_align.window import scaled
from refattention.nodes.refine_by_align_probe import AttentionProbe
from sampling import latent, model, prompt
from torch import Tensor
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("temporary_folder")
WIDGETS = {
    "positive_coords": '[{"x": 20, "y": 70}, {"x": 150, "y": 40}]',
    "timesteps": "261, 621",
    "layers": "output.5, output.8",
    "working_size": 128,
    "seed": 3,
}
SIZE, REFERENCE_SIZE = (101, 203), (77, 53)


class PoolingVAE:
    """Averages cells of 8 x 8 pixels."""

    def encode(self, picture: Tensor) -> Tensor:
        colours = F.avg_pool2d(picture.movedim(-1, 1), 8)
        return torch.cat([colours, colours.mean(1, keepdim=True)], 1) * 4 - 2


def pictures() -> list[Tensor]:
    return [latent(1, *size, 3, seed=seed).sigmoid() for seed, size in enumerate((SIZE, REFERENCE_SIZE))]


def run(family: str = "sd15", **inputs: Any) -> Any:
    image, reference = pictures()
    given = {"image": image, "reference_image": reference, **WIDGETS, **inputs}
    with torch.inference_mode():
        return AttentionProbe.execute(model(family), PoolingVAE(), prompt(family, 1), **given)


def expected(groups: Any, family: str = "sd15") -> dict[tuple[int, Any], Tensor]:
    patcher = model(family)
    known = self_attention_layers(patcher.model.diffusion_model)
    places = frozenset(place for place in known if place[0] in (("output", 5), ("output", 8)))
    samples = [PoolingVAE().encode(scaled(each, 128)) for each in pictures()]
    with torch.inference_mode():
        return attention_maps(
            patcher, prompt(family, 1), *samples, Look(places, (261, 621), 3), groups, node="AttentionProbe"
        )


def read(folder: Path, message: dict[str, Any], name: str) -> Any:
    with Image.open(folder / message[name]["subfolder"] / message[name]["filename"]) as picture:
        return np.asarray(picture)[..., 0]


def test_panel_holds_the_attention_of_every_place(temporary_folder: Path) -> None:
    (message,) = run().ui["refattention_probe"]
    assert message["grid"] == {"width": 32, "height": 16}
    assert message["reference_grid"] == {"width": 22, "height": 32}
    assert (message["size"], message["reference_size"]) == ({"width": 203, "height": 101}, {"width": 53, "height": 77})
    mosaic = read(temporary_folder, message, "maps")
    tiles = mosaic.reshape(17, 32, 32, 22).swapaxes(1, 2).reshape(17 * 32, 32, 22)
    got = tiles / 255 * np.log1p(message["most"])
    centres = [(int((x + 0.5) * 203 / 32), int((y + 0.5) * 101 / 16)) for y in range(16) for x in range(32)]
    places, spot = expected(lambda grid: groups_of_points(centres, SIZE, grid)), expected(spot_groups)
    for tile, maps in ((got[:512], places), (got[512:513], spot)):
        fine = [F.interpolate(each[None], (32, 22), mode="bilinear", antialias=True)[0] for each in maps.values()]
        want = torch.stack(fine).mean(0).log1p().numpy()
        # Brightness is cut to a whole step, and the spot's mean is taken on another grid.
        assert np.abs(tile - want).max() < (1.01 if maps is places else 20) * np.log1p(message["most"]) / 255
    assert not got[513:].any()
    files = list(temporary_folder.rglob("*.png"))
    assert len(files) == 3 and sum(file.stat().st_size for file in files) < 2e6


def test_spot_of_points_and_of_a_mask() -> None:
    mask = torch.zeros(1, 50, 100)
    mask[0, 10:30, 40:90] = 1
    full = torch.zeros(SIZE)
    full[20:61, 81:183] = 1
    for inputs, groups in (({}, spot_groups), ({"mask": mask}, lambda grid: group_of_mask(full, grid))):
        heat_map, heat, sheet = run(**inputs).args
        maps = expected(groups)
        fine = [F.interpolate(each[None], (8, 6), mode="bilinear")[0, 0] for each in maps.values()]
        score = torch.stack(fine).mean(0).log1p()
        score = (score - score.min()) / (score.max() - score.min())
        want = F.interpolate(score[None, None], REFERENCE_SIZE, mode="bilinear")[0, 0]
        assert heat.shape == (1, *REFERENCE_SIZE) and (heat[0] - want).abs().max() < 1e-3
        assert heat_map.shape == (1, *REFERENCE_SIZE, 3) and 0 <= heat_map.min() <= heat_map.max() <= 1
        # Three lines: the picture beside the mean, then a line for each timestep.
        assert sheet.shape == (1, 8 + 3 * 256, 8 + 2 * 232, 3)


def spot_groups(grid: tuple[int, int]) -> Tensor:
    return groups_of_points([(20, 70), (150, 40)], SIZE, grid).mean(0, keepdim=True)


def test_without_points_the_middle_is_the_spot() -> None:
    middle = run(positive_coords='[{"x": 101, "y": 50}]').args[1]
    assert torch.equal(run(positive_coords="").args[1], middle)
    assert not torch.equal(run(positive_coords='[{"x": 9, "y": 9}]').args[1], middle)


def test_the_chosen_spot_is_on_the_sheet() -> None:
    sheets = [run(positive_coords=json.dumps([{"x": x, "y": 50}])).args[2] for x in (30, 170)]
    # The picture fills the width of the first cell, 224 pixels for 203, in the middle of its height.
    changed = (sheets[0] != sheets[1]).any(-1)[0, 8:232, 8:232].nonzero()
    assert changed[:, 1].min() < 33 + 8 and changed[:, 1].max() > 187 - 8
    assert 90 < changed[:, 0].min() and changed[:, 0].max() < 134


def test_sdxl_names_each_layer_of_a_block(temporary_folder: Path) -> None:
    result = run("sdxl", layers="output.0", timesteps="300")
    # Ten layers in lines of six.
    assert result.args[2].shape == (1, 8 + 3 * 256, 8 + 6 * 232, 3)
    assert read(temporary_folder, result.ui["refattention_probe"][0], "maps").shape == (17 * 32, 32 * 22)


@pytest.mark.parametrize("size", [(9, 400), (301, 17)])
def test_narrow_pictures(size: tuple[int, int]) -> None:
    narrow = latent(1, *size, 3).sigmoid()
    heat_map, heat, _ = run(image=narrow, reference_image=narrow, positive_coords="", timesteps="261").args
    assert heat_map.shape == (1, *size, 3) and heat.isfinite().all()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"positive_coords": '[{"x": 203, "y": 0}]'}, r"positive_coords .* 203 x 101 pixels: \(203, 0\)"),
        ({"positive_coords": "[[], []]"}, "positive_coords holds 2 lists .* 1 frame"),
        ({"mask": torch.zeros(1, *SIZE)}, "mask has nothing white"),
        ({"image": torch.zeros(2, *SIZE, 3)}, "image holds 2 pictures"),
        ({"layers": "input.9"}, "layers names 'input.9'"),
        ({"timesteps": "a"}, "timesteps is 'a'"),
    ],
)
def test_errors(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**inputs)


def test_validation_before_the_run() -> None:
    assert AttentionProbe.validate_inputs("[]") is True and AttentionProbe.validate_inputs(None) is True
    assert "positive_coords is not valid JSON" in str(AttentionProbe.validate_inputs("{"))
