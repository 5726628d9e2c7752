"""The calibration: scores, what it calls best, and that the nodes accept it."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import calibrate_align
import comfy.sd
import numpy as np
import pytest
import refine_support
import torch
from editing import AnyCodec, editing_model
from families import tiny_prompt
from PIL import Image
from refattention.core.patches.blocks import select_layers
from refattention.core.patches.unet import self_attention_layers
from refattention.core.refine_by_align.files import load_adapter
from refattention.core.refine_by_align.observe import parse_look
from refattention_demo.loading import load
from sampling import prompt


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """Noise with a patch that is elsewhere in the reference."""
    rng = np.random.default_rng(0)
    image, reference = (rng.integers(0, 256, (96, 96, 3), dtype=np.uint8) for _ in range(2))
    image[8:40, 8:40] = reference[48:80, 48:80] = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    masks = np.zeros((2, 96, 96, 3), np.uint8)
    masks[0, 8:40, 8:40] = masks[1, 48:80, 48:80] = 255
    folder = tmp_path / "case"
    folder.mkdir()
    for name, pixels in zip(calibrate_align.NAMES, (image, masks[0], reference, masks[1]), strict=True):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def test_scores_are_there_for_every_timestep_and_layer_and_give_inputs_of_the_node(case: Path, tmp_path: Path) -> None:
    model, _, vae = load("sd15")
    scores = calibrate_align.score([case], model, vae, prompt("sd15", 1), [100, 500], 128)
    places = self_attention_layers(model.model.diffusion_model)
    assert len(scores) == 2 * len(places)
    assert all(len(values) == 1 and 0 <= values[0] <= 1 for values in scores.values())
    chosen = json.loads(json.dumps(calibrate_align.best(scores)))
    settings = parse_look(model, chosen["timesteps"], chosen["layers"], 0, "Node")
    assert settings.timesteps[0] in (100, 500) and len(settings.layers) == 4
    assert settings.layers == select_layers(chosen["layers"], list(places), "SD15")
    calibrate_align.plot(scores, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.size[0] > 400


@pytest.mark.parametrize("in_context", [False, True])
def test_transformers_are_calibrated_by_either_way(case: Path, in_context: bool) -> None:
    model, prompt = editing_model("flux"), tiny_prompt("flux", 1)
    scores = calibrate_align.score([case], model, AnyCodec("flux"), prompt, [100], 96, in_context=in_context)
    assert {layer for _, layer in scores} == {"double.0.0", "double.1.0", "single.0.0", "single.1.0"}
    assert all(0 <= values[0] <= 1 for values in scores.values())


def test_a_trained_adapter_is_scored_by_its_cross_attentions_and_carries_what_was_found(
    case: Path, tmp_path: Path
) -> None:
    model, trained = refine_support.base(), refine_support.adapter()
    given = [case], model, refine_support.Codec(), refine_support.prompt(1), [100, 500], 128
    scores = calibrate_align.score(*given, trained, refine_support.vision())
    assert len(scores) == 2 * len(self_attention_layers(model.model.diffusion_model))
    assert scores != calibrate_align.score(*given)
    chosen = calibrate_align.best(scores)
    calibrate_align.save_calibrated(trained, chosen, tmp_path / "calibration.safetensors")
    carried = load_adapter(tmp_path / "calibration.safetensors")
    assert carried.origin.look == chosen
    assert all(torch.equal(carried.weights[name], each) for name, each in trained.weights.items())
    settings = parse_look(model, "auto", "auto", 0, "Node", carried.origin.look)
    assert settings == parse_look(model, chosen["timesteps"], chosen["layers"], 0, "Node")
    with pytest.raises(FileExistsError):
        calibrate_align.save_calibrated(trained, chosen, tmp_path / "calibration.safetensors")


def test_best_is_the_best_timestep_and_the_best_layers_at_it() -> None:
    scores = {(t, f"output.{n}.0"): [0.1 * n + 0.01 * t, 0.0] for t in (1, 5) for n in range(6)}
    assert calibrate_align.means(scores, 0) == pytest.approx({1: 0.13, 5: 0.15})
    assert calibrate_align.means(scores, 1)["output.2.0"] == pytest.approx(0.115)
    assert calibrate_align.best(scores, 2) == {"timesteps": "5", "layers": "output.5.0, output.4.0"}


@pytest.mark.parametrize("name", ["calib.sd15", "calib.sdxl", "photo.png", "calibration"])
def test_an_ending_is_only_added_and_nothing_is_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "photo.png").write_text("mine")
    scores = {(100, "output.1.0"): [0.5]}
    calibrate_align.save({"timesteps": "100"}, scores, *(tmp_path / (name + ending) for ending in (".json", ".png")))
    assert (tmp_path / "photo.png").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({f"{name}.json", f"{name}.png", "photo.png"})
    monkeypatch.setattr("sys.argv", ["calibrate_align", "set", "model", "--output", str(tmp_path / name)])
    with pytest.raises(SystemExit):
        calibrate_align.main()
    assert f"{name}.json exists already; choose another --output" in capsys.readouterr().err


def test_what_is_wrong_with_the_cases_is_said_before_the_work(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [shutil.copytree(case, tmp_path / name) for name in ("no_mask", "black", "small", ".hidden")]
    (others[0] / "mask.png").unlink()
    Image.new("RGB", (96, 96)).save(others[1] / "reference_mask.png")
    Image.new("RGB", (48, 48), "white").save(others[2] / "mask.png")
    assert not calibrate_align.faults_of(case)
    given = [str(tmp_path), "no model", "--output", str(tmp_path / "calibration")]
    monkeypatch.setattr("sys.argv", ["calibrate_align", *given])
    with pytest.raises(SystemExit):
        calibrate_align.main()
    said = capsys.readouterr().err
    assert "no_mask: [Errno 2] No such file" in said and ".hidden" not in said
    assert f"{others[1] / 'reference_mask'}.png has nothing white" in said
    assert f"{others[2] / 'mask'}.png has another size than image.png" in said
    monkeypatch.setattr("sys.argv", ["calibrate_align", str(tmp_path / "nowhere"), *given[1:]])
    with pytest.raises(SystemExit):
        calibrate_align.main()
    assert "nowhere holds no folders" in capsys.readouterr().err


def test_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        calibrate_align.save({}, {(100, "output.1.0"): [0.5]}, tmp_path / "a.json", tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_trained_adapter_is_not_calibrated_in_context(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--adapter", "a.safetensors", "--clip-vision", "v.safetensors", "--in-context"]
    monkeypatch.setattr("sys.argv", ["calibrate_align.py", "set", "model.safetensors", *given])
    with pytest.raises(SystemExit):
        calibrate_align.main()
    assert "--in-context is a way without training, but --adapter names a trained one" in capsys.readouterr().err


def test_a_checkpoint_without_text_encoder_or_vae(monkeypatch: pytest.MonkeyPatch) -> None:
    model, empty = object(), comfy.sd.VAE(sd={})
    arguments = argparse.Namespace(extension=None, adapter=None, checkpoint=Path("unet.safetensors"), prompt="")
    for clip in (None, object()):
        found = model, clip, empty, None
        monkeypatch.setattr(comfy.sd, "load_checkpoint_guess_config", lambda _, found=found: found)
        with pytest.raises(RuntimeError, match=r"^unet\.safetensors lacks model, text encoder or VAE\."):
            calibrate_align.load_models(arguments)
