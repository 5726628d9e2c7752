"""DensePose by a TorchScript file, with a stand-in of the published file's signature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
import numpy
import pytest
import torch
from refattention.core.leffa import body_map
from refattention.core.leffa.densepose import body_of, detect, load
from refattention.nodes import leffa_densepose
from refattention.nodes.files import script_names, script_path
from refattention.nodes.leffa_body_map import LeffaBodyMap
from refattention.nodes.leffa_densepose import LeffaDensePose
from refattention_demo import densepose
from torch import Tensor, nn


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models/detection with the stand-in."""
    folders = {**folder_paths.folder_names_and_paths, "detection": ([str(tmp_path)], set())}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", folders)
    monkeypatch.delenv("AUX_ANNOTATOR_CKPTS_PATH", raising=False)
    densepose.write(tmp_path)
    return tmp_path


def photograph(height: int = 320, width: int = 240) -> Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(0))


def naive(box: Any, body: Any, parts: Any, u: Any, v: Any, size: tuple[int, int]) -> Any:
    """Pixel by pixel in float64: bilinear samples at the middle of each pixel of the box."""
    left, top, width, height = (int(n) for n in (box[0], box[1], box[2] - box[0], box[3] - box[1]))

    def sampled(grid: Any, row: int, column: int) -> Any:
        high, wide = grid.shape[-2:]
        y = min(max((row + 0.5) * high / height - 0.5, 0), high - 1)
        x = min(max((column + 0.5) * wide / width - 0.5, 0), wide - 1)
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, high - 1), min(x0 + 1, wide - 1)
        top_line = grid[:, y0, x0] * (1 - (x - x0)) + grid[:, y0, x1] * (x - x0)
        bottom = grid[:, y1, x0] * (1 - (x - x0)) + grid[:, y1, x1] * (x - x0)
        return top_line * (1 - (y - y0)) + bottom * (y - y0)

    canvas = numpy.zeros((3, *size))
    for row in range(height):
        for column in range(width):
            if sampled(body, row, column).argmax() > 0:
                part = sampled(parts, row, column).argmax()
                if part > 0 and 0 <= row + top < size[0] and 0 <= column + left < size[1]:
                    coordinates = (sampled(u, row, column)[part], sampled(v, row, column)[part])
                    canvas[:, row + top, column + left] = [part, *coordinates]
    return canvas


@pytest.mark.parametrize("box", [(3.6, 2.2, 30.9, 41.0), (-5.0, -3.0, 28.0, 55.0)], ids=["inside", "beyond"])
def test_body_from_what_the_network_gives(box: tuple[float, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    body, parts, u, v = (torch.rand(1, n, 7, 5, generator=generator) for n in (2, 25, 25, 25))
    size = 48, 36
    found = body_of(torch.tensor(box), body, parts, u, v, size)
    want = naive(box, *(each[0].double().numpy() for each in (body, parts, u, v)), size)
    assert (found.parts == want[0]).mean() > 0.99  # ties apart
    same = (found.parts == want[0]) & (want[0] > 0)
    # U and V are spread over 0 to 255 together; a linear map of the oracle's
    values, expected = found.uv[:, same].astype(float), want[1:, same]
    slope, offset = numpy.polyfit(expected.ravel(), values.ravel(), 1)
    assert abs(values - (slope * expected + offset)).max() <= 1.01
    assert found.uv[:, found.parts > 0].max() == 255


@pytest.mark.parametrize("size", [(320, 240), (200, 500), (512, 512)])
def test_the_picture_has_the_size_of_the_photograph(folder: Path, size: tuple[int, int]) -> None:
    """And one of the figure's parts is where it was drawn, whatever the size that the network saw."""
    found = LeffaDensePose.execute(photograph(*size), densepose.NAME, True)[0]
    assert found.shape == (1, *size, 3)
    assert body_map.kind_of((found[0] * 255).round().byte().numpy()) == body_map.UVI
    parts = (found[0, ..., 2] * 255).round()
    assert set(parts.unique().int().tolist()) == {0, *range(1, 25)}
    place = {part: (left, top) for part, left, top, *_ in densepose.FIGURE}
    rows, columns = torch.nonzero(parts == 4, as_tuple=True)
    middle = columns.float().mean() / size[1], rows.float().mean() / size[0]
    assert middle[0] == pytest.approx(0.5 + 0.4 * place[4][0], abs=0.02)
    assert middle[1] == pytest.approx(0.5 + 0.48 * place[4][1], abs=0.02)


def test_all_formats_of_it(folder: Path) -> None:
    found = LeffaDensePose.execute(photograph(), densepose.NAME, True)[0]
    parts = (found[..., 2:] * 255).round()
    for kind in body_map.FORMATS:
        made = LeffaBodyMap.execute(found, kind, "auto")[0]
        back = LeffaBodyMap.execute(made, body_map.PARTS, "auto")[0]
        assert torch.equal((back * 255).round(), parts.expand(-1, -1, -1, 3)), kind


def test_code_is_not_run_without_consent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leffa_densepose, "load", lambda path: pytest.fail("the file was opened"))
    with pytest.raises(ValueError, match="If you trust where you got it from, switch run_code_of_file on"):
        LeffaDensePose.execute(photograph(), densepose.NAME, False)
    default = next(each for each in LeffaDensePose.define_schema().inputs if each.id == "run_code_of_file").default
    assert default is False


def test_nobody_is_found(folder: Path) -> None:
    pictures = torch.cat([photograph(), torch.zeros(1, 320, 240, 3)])
    with pytest.raises(ValueError, match="found nobody in picture 2 of image"):
        LeffaDensePose.execute(pictures, densepose.NAME, True)


class Doubler(nn.Module):
    """Another TorchScript file."""

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """No body."""
        return picture, picture


def test_other_files_are_refused(folder: Path) -> None:
    torch.jit.script(Doubler()).save(str(folder / "other.torchscript"))
    with pytest.raises(RuntimeError, match="no DensePose of the kind that comfyui_controlnet_aux uses"):
        LeffaDensePose.execute(photograph(), "other.torchscript", True)
    (folder / "broken.torchscript").write_bytes(b"<html>")
    with pytest.raises(RuntimeError, match=r"broken\.torchscript is no TorchScript file"):
        LeffaDensePose.execute(photograph(), "broken.torchscript", True)
    with pytest.raises(FileNotFoundError, match="no file 'gone' in models/detection"):
        LeffaDensePose.execute(photograph(), "gone", True)


def test_files_of_controlnet_aux_are_found(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tmp_path / "ckpts" / "LayerNorm" / "DensePose"
    densepose.write(theirs)
    (theirs / densepose.NAME).rename(theirs / "densepose_r101_fpn_dl.torchscript")
    (folder / "yolo.pt").write_bytes(b"")
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {"detection": ([str(tmp_path / "none")], set())})
    monkeypatch.setenv("AUX_ANNOTATOR_CKPTS_PATH", str(tmp_path / "ckpts"))
    assert script_names() == ["densepose_r101_fpn_dl.torchscript"]
    assert script_path(script_names()[0]) == str(theirs / "densepose_r101_fpn_dl.torchscript")


def test_the_network_is_managed(folder: Path) -> None:
    patcher = load(folder / densepose.NAME)
    assert patcher.model_size() > 1 << 20
    one = detect(patcher, photograph())
    patcher.detach()
    assert torch.equal(detect(patcher, photograph()), one)
