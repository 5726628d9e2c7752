"""PointMask on photographs with a full-size CLIP ViT-L/14 of random weights, loaded from its file by the host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import pytest
import torch
from bootstrap import ROOT
from PIL import Image
from refattention.nodes.point_mask import PointMask
from refattention_demo import vision
from safetensors.torch import save_file

import nodes

WIDGETS = {item.id: getattr(item, "default", None) for item in PointMask.GET_SCHEMA().inputs}


@pytest.fixture(scope="module")
def clip_vision(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("clip_vision")
    generator = torch.Generator().manual_seed(0)
    # Names and shapes are the real ones; the file is removed at once, for it has 600 MB.
    weights = {
        name: (torch.ones_like(each) if "norm" in name and name.endswith("weight") else
               torch.randn(each.shape, generator=generator).half() * 0.03)
        for name, each in vision.state_dict().items()
    }  # fmt: skip
    save_file(weights, folder / "random.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(folder_paths.folder_names_and_paths, "clip_vision", ([str(folder)], {".safetensors"}))
        (loaded,) = nodes.CLIPVisionLoader().load_clip("random.safetensors")
    (folder / "random.safetensors").unlink()
    yield loaded


def photograph(name: str) -> torch.Tensor:
    with Image.open(ROOT / "workflows" / "pictures" / name) as picture:
        return torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32) / 255)[None]


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "plus", "minus", "fit"),
    [
        ("refattention_two_cups.jpg", (80, 230), (830, 230), "stretch"),
        ("refattention_coins.jpg", (330, 42), (365, 188), "pad"),
    ],
)
def test_photographs(
    clip_vision: Any,
    name: str,
    plus: tuple[int, int],
    minus: tuple[int, int],
    fit: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    image = photograph(name)
    points = {
        f"{sign}_coords": f'[{{"x": {x}, "y": {y}}}]' for sign, (x, y) in (("positive", plus), ("negative", minus))
    }
    # Random weights know no subjects: the low threshold lets the point's own surroundings be found for sure.
    inputs = {**WIDGETS, **points, "image": image, "clip_vision": clip_vision, "fit": fit, "threshold": 0.05}
    mask, negative, cleaned, heat, *_ = PointMask.execute(**inputs).args
    assert mask.shape == negative.shape == image.shape[:3]
    assert cleaned.shape == heat.shape == image.shape
    assert 0 < mask.mean() < 1
    assert torch.equal(cleaned[negative == 0], image[negative == 0])
    assert len(list(tmp_path.iterdir())) == 3
