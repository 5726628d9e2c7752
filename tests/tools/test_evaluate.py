"""Scores against hand-computed cases, over lists and over results of the runner; networks are tiny and random."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import evaluate
import numpy
import pytest
import torch
from bootstrap import HOST
from PIL import Image
from scoring.networks import Clip
from scoring.networks import load as read
from training_support import blob, save_picture


def listed(folder: Path, lines: list[dict[str, Any]]) -> str:
    path = folder / "list.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def scores(folder: Path, *arguments: str) -> dict[str, Any]:
    target = folder / f"scores_{len(list(folder.iterdir()))}.json"
    assert evaluate.main([*arguments, "--output", str(target)]) == 0
    return json.loads(target.read_text(), parse_constant=pytest.fail)["scores"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of transformers with 16 numbers to a token."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 28, "patch_size": 14}
    CLIPModel(CLIPConfig(text_config=sizes, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    tokenizer = CLIPTokenizer.from_pretrained(HOST / "comfy" / "sd1_tokenizer")
    size = {"height": 28, "width": 28}
    CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size), tokenizer).save_pretrained(folder)
    return folder


def test_try_on(tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = numpy.full((32, 24, 3), 100, numpy.float32)
    other = truth.copy()
    other[:16] += 30  # half of the pixels by 30 of 255
    for name, pixels in (("truth.png", truth), ("other.png", other)):
        save_picture(tmp_path / name, pixels / 255)
    lines = [{"result": name, "truth": "truth.png"} for name in ("truth.png", "other.png")]
    found = scores(tmp_path, "tryon", listed(tmp_path, lines[1:]))
    assert found["PSNR"]["mean"] == pytest.approx(10 * math.log10(255**2 / (30**2 / 2)), rel=1e-4)
    assert 0 < found["SSIM"]["mean"] < 1 and set(found) == {"SSIM", "PSNR"}
    assert "LPIPS left out" in capsys.readouterr().out
    assert scores(tmp_path, "tryon", listed(tmp_path, lines))["PSNR"] == {"mean": None, "deviation": None, "n": 2}
    found = scores(tmp_path, "tryon", listed(tmp_path, [lines[1], lines[1]]), "--clip", str(clip))
    assert found["FID (CLIP)"]["mean"] > 0 and found["FID (CLIP)"]["n"] == 1 and "KID (CLIP)" in found


class StandIn(torch.nn.Module):
    """Called as NVIDIA's Inception is: pictures in [0, 255] of any size, and whether features are wanted."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        cells = torch.nn.functional.interpolate(img, (2, 2), mode="area").flatten(1) / 255
        return cells if return_features else cells.softmax(1)


class Maps(torch.nn.Module):
    """Called as Inception is, but its features are maps."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return img


def test_fid_and_kid_by_a_file_of_inception(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.jit.script(StandIn()).save(str(tmp_path / "inception.pt"))
    for number in range(8):
        save_picture(tmp_path / f"{number}.png", blob(number, (24, 32)))
    lines = [{"result": f"{number}.png", "truth": f"{number + 4}.png"} for number in range(4)]
    given = ["tryon", listed(tmp_path, lines), "--inception", str(tmp_path / "inception.pt")]
    found = scores(tmp_path, *given)
    pictures = [read(tmp_path / f"{number}.png")[0] for number in range(8)]
    cells = torch.stack([torch.nn.functional.adaptive_avg_pool2d(each.double(), 2).flatten() for each in pictures])
    results, truths = cells[:4], cells[4:]
    # |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)), whose last trace is the sum of the product's eigenvalues' roots.
    one, other = results.T.cov(), truths.T.cov()
    roots = torch.linalg.eigvals(one @ other).real.clamp(min=0).sqrt().sum()
    want = (results.mean(0) - truths.mean(0)).square().sum() + one.trace() + other.trace() - 2 * roots
    assert found["FID"]["mean"] == pytest.approx(want.item(), rel=2e-3)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    within = [(kernel(each, each).sum() - kernel(each, each).trace()) / (4 * 3) for each in (results, truths)]
    assert found["KID"]["mean"] == pytest.approx((sum(within) - 2 * kernel(results, truths).mean()).item(), rel=1e-3)


def test_another_file_than_inceptions_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_picture(tmp_path / "0.png", blob(0, (24, 32)))
    file, lines = tmp_path / "other.pt", [{"result": "0.png", "truth": "0.png"}] * 2
    given = ["tryon", listed(tmp_path, lines), "--inception", str(file)]
    no_script = "other.pt is no TorchScript, as inception-2015-12-05.pt is."
    for write, said in (
        (lambda: None, no_script),
        (lambda: file.write_bytes(b"something else"), no_script),
        (lambda: torch.jit.script(torch.nn.Conv2d(3, 2, 1)).save(file), "is not inception-2015-12-05.pt: it makes no"),
        (lambda: torch.jit.script(Maps()).save(file), "is not inception-2015-12-05.pt: its features have another"),
    ):
        write()
        assert evaluate.main(given) == 2
        assert said in capsys.readouterr().err


def test_lpips_by_a_file_of_alexnet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from torchvision.models import alexnet

    with torch.device("meta"):
        shapes = {f"features.{name}": each.shape for name, each in alexnet().features.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}
    torch.save(weights, tmp_path / "alexnet.pth")
    for number in range(2):
        save_picture(tmp_path / f"{number}.png", blob(number, (72, 72)))
    for result, bounds in (("0.png", (-1e-6, 1e-6)), ("1.png", (1e-6, 10.0))):
        lines = [{"result": result, "truth": "0.png"}]
        found = scores(tmp_path, "tryon", listed(tmp_path, lines), "--lpips", str(tmp_path / "alexnet.pth"))
        assert bounds[0] <= found["LPIPS"]["mean"] <= bounds[1]
    torch.save({"other": torch.zeros(1)}, tmp_path / "alexnet.pth")
    (tmp_path / "damaged.pth").write_bytes((tmp_path / "alexnet.pth").read_bytes()[:-100])
    for name in ("alexnet.pth", "damaged.pth"):
        assert evaluate.main(["tryon", listed(tmp_path, lines), "--lpips", str(tmp_path / name)]) == 2
        assert "is not torchvision's AlexNet" in capsys.readouterr().err


def test_style_and_subject(tmp_path: Path, clip: Path) -> None:
    for number in range(4):
        save_picture(tmp_path / f"{number}.png", blob(number, (40, 40)))
    same = [{"result": "0.png", "reference": "0.png", "prompt": "a cat"}]
    found = scores(tmp_path, "style", listed(tmp_path, same), "--clip", str(clip))
    assert found["style similarity"]["mean"] == pytest.approx(1.0) and -1 <= found["CLIP-T"]["mean"] < 1
    lines = [
        {"result": f"{number}.png", "reference": ["0.png", "3.png"], "prompt": "a cat", "group": number // 2}
        for number in range(4)
    ]
    found = scores(tmp_path, "subject", listed(tmp_path, lines), "--clip", str(clip))
    network = Clip(clip)
    vectors = [network.picture(tmp_path / f"{number}.png").double() for number in range(4)]
    cosines = [
        [float(one @ vectors[other] / one.norm() / vectors[other].norm()) for other in (0, 3)] for one in vectors
    ]
    likeness = [sum(pair) / 2 for pair in cosines]
    assert found["CLIP-I"]["mean"] == pytest.approx(sum(likeness) / 4, rel=1e-5)
    variances = [(likeness[at] - likeness[at + 1]) ** 2 / 2 for at in (0, 2)]
    assert found["CLIP-Iv"]["mean"] == pytest.approx(sum(variances) / 2, rel=1e-3, abs=1e-9)


def test_alignment(tmp_path: Path) -> None:
    truth, found = torch.zeros(20, 20), torch.zeros(20, 20)
    truth[:, :10], found[:, 5:15] = 1, 1
    save_picture(tmp_path / "truth.png", truth)
    save_picture(tmp_path / "found.png", found)
    got = scores(tmp_path, "alignment", listed(tmp_path, [{"result": "found.png", "truth": "truth.png"}]))
    assert got["mIoU"]["mean"] == pytest.approx(1 / 3)


def test_results_of_the_runner(tmp_path: Path) -> None:
    save_picture(tmp_path / "truth.png", blob(0, (24, 24)))
    save_picture(tmp_path / "results" / "0001" / "a.png", blob(0, (24, 24)))
    done = {"key": "k-1", "state": "done", "folder": "0001", "inputs": {"LoadImage.image": "truth.png"}}
    lines = [{"run": "x"}, done, {"state": "failed", "inputs": {}}]
    (tmp_path / "results" / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ["tryon", "--results", str(tmp_path / "results"), "--files", str(tmp_path), "--columns"]
    found = scores(tmp_path, *given, "truth=LoadImage.image")
    assert found["SSIM"]["mean"] == pytest.approx(1.0) and found["SSIM"]["n"] == 1
    assert evaluate.main([*given, "truth=LoadImage.other"]) == 2
    assert evaluate.main([*given, "truth"]) == 2
    with (tmp_path / "results" / "manifest.jsonl").open("a") as file:
        file.write('{"state": "do')  # a run that was cut off
    assert scores(tmp_path, *given, "truth=LoadImage.image")["SSIM"]["n"] == 1


def test_a_row_that_was_run_again_counts_once_by_its_last_results(tmp_path: Path) -> None:
    """--again-missing: the first folder is gone."""
    save_picture(tmp_path / "truth.png", blob(0, (24, 24)))
    save_picture(tmp_path / "results" / "cat_2" / "a.png", blob(0, (24, 24)))
    done = {"key": "k-1", "state": "done", "inputs": {"LoadImage.image": "truth.png"}}
    lines = [{"run": "x"}, {**done, "folder": "cat"}, {**done, "folder": "cat_2"}]
    (tmp_path / "results" / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ["tryon", "--results", str(tmp_path / "results"), "--files", str(tmp_path)]
    assert scores(tmp_path, *given, "--columns", "truth=LoadImage.image")["SSIM"]["n"] == 1


def test_a_list_with_a_mark_and_the_ends_of_lines_of_other_systems_and_a_photograph_on_its_side(tmp_path: Path) -> None:
    pixels = blob(0, (24, 32))
    save_picture(tmp_path / "upright.png", pixels)
    on_its_side = Image.fromarray((pixels.numpy() * 255).round().astype(numpy.uint8)).transpose(Image.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    on_its_side.save(tmp_path / "photo.png", exif=exif)
    line = json.dumps({"result": "upright.png", "truth": "photo.png", "prompt": "a\u2028b"}, ensure_ascii=False)
    (tmp_path / "list.jsonl").write_bytes(f"\ufeff{line}\r\n".encode())
    assert scores(tmp_path, "tryon", str(tmp_path / "list.jsonl"))["SSIM"]["mean"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "nothing to score"),
        ([{"result": "gone.png", "truth": "gone.png"}], "2 entries of the list cannot be scored"),
        ([{"result": "gone.png"}], "line 1 has no 'truth'"),
        (["gone.png"], "line 1 is no object of names and values"),
    ],
)
def test_what_cannot_be_scored(lines: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["tryon", listed(tmp_path, lines)]) == 2
    assert message in capsys.readouterr().err


def test_scores_by_clip_need_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_picture(tmp_path / "0.png", blob(0, (24, 24)))
    line = {"result": "0.png", "reference": "0.png", "prompt": "a"}
    assert evaluate.main(["style", listed(tmp_path, [line])]) == 2
    assert "Name the folder of one by --clip" in capsys.readouterr().err


def test_scores_are_written_over_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photo.png").write_text("mine")
    command = ["alignment", str(tmp_path / "list.jsonl"), "--output", str(tmp_path / "photo.png")]
    assert evaluate.main(command) == evaluate.USAGE
    assert "photo.png exists already" in capsys.readouterr().err
    assert (tmp_path / "photo.png").read_text() == "mine"
