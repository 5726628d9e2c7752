"""Refine by Align and P3S through the command: their data, a run, and that the nodes take its file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from encoders import encoder
from p3s_support import Eye
from refattention.core.p3s.adapter import for_model as p3s_for_model
from refattention.core.p3s.files import load_adapter as load_p3s
from refattention.core.patches.unet import family
from refattention.core.refine_by_align.adapter import for_model
from refattention.core.refine_by_align.files import load_adapter
from refattention.core.refine_by_align.training import ALIGNMENT, REFINEMENT
from safetensors.torch import save_file
from training.config import ConfigError, build, read
from training_support import EXTENSION, base_file, blob, config_file, losses, save_picture, train_here

pytestmark = pytest.mark.usefixtures("outside_of_inference_mode")


@pytest.fixture(autouse=True)
def small_eyes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vision encoders of a few numbers in place of files that ComfyUI would know."""
    from training.tasks import p3s, refine

    monkeypatch.setattr(refine, "load_vision", lambda config: encoder("dino2"))
    monkeypatch.setattr(p3s, "load_vision", lambda config: Eye())


def configured(folder: Path, **tables: Any) -> Path:
    base_file(folder)
    return config_file(
        folder,
        output="run",
        trackers=[],
        models={"checkpoint": "base.safetensors", "extensions": [str(EXTENSION)]},
        data={"root": "data"},
        train={"steps": 2, "batch_size": 2, "height": 64, "width": 64, "learning_rate": 1e-3},
        save={"every": 0, "dtype": "float32"},
        validate={"every": 2, "steps": 2, "pictures": 2},
        **tables,
    )


def task_of(name: str, config: Path, *changes: str) -> Any:
    from training.tasks import p3s, refine

    method = {"refine": refine, "p3s": p3s}[name]
    table = read(config, [f"models.start=run/{name}.safetensors", "output=again", *changes])
    return method.Task(build(table, config.parent, method.Data, method.Options, method.DEFAULTS))


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """A picture by itself, one with another view, and one whose views correspond."""
    data, rows = tmp_path / "data", []
    inside = torch.zeros(70, 90)
    inside[20:50, 30:70] = 1
    y, x = torch.meshgrid(torch.arange(70.0), torch.arange(90.0), indexing="ij")
    for number in range(3):
        save_picture(data / f"i{number}.png", blob(number, (70, 90)))
        save_picture(data / f"r{number}.png", blob(number + 9, (64, 80)))
        save_picture(data / f"m{number}.png", inside)
        rows.append(
            {"image": f"i{number}.png", "mask": f"m{number}.png", **({"reference": f"r{number}.png"} if number else {})}
        )
    numpy.save(data / "c2.npy", torch.stack([x * 0.8, y * 0.9], dim=-1).numpy())
    rows[2]["correspondence"] = "c2.npy"
    (data / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return configured(tmp_path)


def test_refine_trains_an_adapter_that_the_node_takes(objects: Path) -> None:
    assert train_here("refine", objects, "--dry-run") == 0
    assert train_here("refine", objects) == 0
    run = objects.parent / "run"
    assert len(losses(run)) == 2 and (run / "validation-000002.png").exists()
    task = task_of("refine", objects)
    adapter = load_adapter(run / "refine.safetensors")
    assert adapter.origin.settings["alignment_share"] == 0.5 and adapter.origin.image_size == task._image_size
    patched, tokens = for_model(adapter, task._model, family(task._model))
    assert patched.patches and all(".attn2." in name for name in patched.patches)
    for name, weight in tokens.model.state_dict().items():
        assert torch.equal(weight, adapter.weights[f"tokens.{name}"])
    # Started from its file, the objective has its weights.
    ours = task.objective.unet.state_dict()
    assert all(torch.equal(ours[name[5:]], each) for name, each in adapter.weights.items() if name.startswith("unet."))


def test_examples_show_the_part_where_it_is_known(objects: Path) -> None:
    table = read(objects, [])
    from training.tasks import refine

    task = refine.Task(build(table, objects.parent, refine.Data, refine.Options, refine.DEFAULTS))
    for number in range(3):
        for seed in range(6):
            sample = task.sample((number, seed, 0))
            example, mode = sample.example, sample.drawn.mode
            assert example.picture.shape == (1, 64, 64, 3) and example.mask.any() and example.region.any()
            if number == 1 and mode == ALIGNMENT:  # all of the other view, which may show the part anywhere
                assert example.reference.shape == (1, 64, 80, 3) and example.region.all()
            if number == 2:
                assert example.reference.shape == (1, 64, 80, 3)
                # The picture is scaled by 64 / 70 and cut to 64 columns from the 14th on.
                rows, columns = (torch.nonzero(example.mask.any(axis)).flatten() * 70 / 64 for axis in (1, 0))
                found = torch.nonzero(example.region.any(1)).flatten()
                assert abs(found[0] - rows[0] * 0.9) <= 2 and abs(found[-1] - rows[-1] * 0.9) <= 2
                found, shift = torch.nonzero(example.region.any(0)).flatten(), 0.8 * 14 * 70 / 64
                assert abs(found[0] - columns[0] * 0.8 - shift) <= 3
            if number == 0 or (number == 1 and mode == REFINEMENT):  # cut from the picture itself
                assert example.region.sum() == example.mask.sum()


def test_a_picture_is_encoded_once(objects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.tasks import refine

    table = read(objects, [])
    task = refine.Task(build(table, objects.parent, refine.Data, refine.Options, refine.DEFAULTS))
    encode, encoded = task._vae.encode, []
    monkeypatch.setattr(task._vae, "encode", lambda picture: encoded.append(picture) or encode(picture))
    batches = [task.batch([task.sample((number, seed, seed)) for number in (0, 1)]) for seed in range(3)]
    assert len(encoded) == 2
    assert torch.equal(batches[0].latents, batches[2].latents) and not torch.equal(*batches[0].latents)


def test_an_extension_may_read_the_vision_encoder(objects: Path) -> None:
    """Its answer is taken; where it has none, ComfyUI is asked."""
    from training import models

    folder = objects.parent
    (folder / "seeing.py").write_text(
        "def load_clip_vision(path):\n    return path.name if path.stem == 'mine' else None\n"
    )
    (folder / "mine.bin").write_bytes(b"")
    from refattention.core.models import checkpoint

    checkpoint.save({"x": torch.zeros(1)}, folder / "other.safetensors", {})
    from training.tasks import refine

    def loaded(name: str) -> Any:
        changes = [f"models.clip_vision={name!r}", "models.extensions=['seeing.py']"]
        config = build(read(objects, changes), folder, refine.Data, refine.Options, refine.DEFAULTS)
        models.extend(config)
        return models.load_vision(config)

    assert loaded("mine.bin") == "mine.bin"
    with pytest.raises(ConfigError, match="no vision encoder that ComfyUI knows"):
        loaded("other.safetensors")


def test_refine_names_what_is_wrong(objects: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = objects.parent / "data" / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["mask"], rows[1]["reference_mask"], rows[2]["reference"] = "r0.png", "m1.png", ""
    file.write_text("\n".join(map(json.dumps, rows)))
    assert train_here("refine", objects) == 2
    said = capsys.readouterr().err
    assert (
        "mask is 80 x 64, but image is 90 x 70" in said
        and "reference_mask is 90 x 70, but reference is 80 x 64" in said
    )
    assert "there is a correspondence, but no reference" in said
    file.write_text(json.dumps({"image": "i0.png"}))
    assert train_here("refine", objects) == 2
    assert "line 1 needs 'mask'" in capsys.readouterr().err


@pytest.fixture
def subject(tmp_path: Path) -> Path:
    """Pictures of three shapes, one with a mask."""
    data = tmp_path / "data"
    for number, size in enumerate([(64, 64), (64, 96), (96, 64), (70, 66), (128, 128)]):
        save_picture(data / f"i{number}.png", blob(number, size))
    inside = torch.zeros(64, 96)
    inside[10:50, 20:60] = 1
    save_picture(data / "i1.mask.png", inside)
    return configured(tmp_path)


def test_p3s_trains_on_a_folder_of_mixed_sizes(subject: Path) -> None:
    assert train_here("p3s", subject, "--set", "data.class_word=cup", "--set", "train.steps=3") == 0
    run = subject.parent / "run"
    assert len(losses(run)) == 3
    adapter = load_p3s(run / "p3s.safetensors")
    assert (adapter.origin.class_word, adapter.origin.prompt) == ("cup", "a photo of sks cup")
    task = task_of("p3s", subject)
    assert [task._sizes[number] for number in range(5)] == [(64, 64), (56, 80), (80, 56), (64, 64), (64, 64)]
    plan, references = task.plan(2, 0), set()
    for step in range(12):
        samples = [task.sample(key) for key in plan.keys(step)]
        assert len({task._sizes[each.record] for each in samples}) == len({each.reference for each in samples}) == 1
        references |= {(task._sizes[each.record], task._sizes[each.reference]) for each in samples}
    assert len({size for size, _ in references}) == 3 and any(size != read for size, read in references)
    batch = task.batch([replace(task.sample((1, 4, 0)), reference=1)])
    assert batch.targets.shape[-2:] == (7, 10) and batch.subject.on((7, 10), torch.device("cpu")) is not None
    # What the frozen model with the file's adapter predicts is what the objective does.
    patched = p3s_for_model(adapter, task._model, family(task._model))
    ours = task.objective.network.state_dict()
    assert all(torch.equal(ours[name], each) for name, each in patched.model.state_dict().items())


def test_p3s_gradients_reach_the_adapter_alone(subject: Path) -> None:
    from training.tasks import p3s

    task = p3s.Task(build(read(subject, []), subject.parent, p3s.Data, p3s.Options, p3s.DEFAULTS))
    losses = task.objective(task.batch([task.sample((0, 4, 0)), task.sample((3, 5, 0))]))
    losses["loss"].backward()
    assert losses["loss"].item() == pytest.approx((losses["denoising"] + 0.1 * losses["consistency"]).item())
    assert {name.split(".")[0] for name, _ in task.objective.named_parameters()} == {"network"}
    assert not any(each.requires_grad for each in task.objective._unet[0].parameters())
    assert any(each.grad is not None and each.grad.any() for each in task.objective.network.zero_hidden.parameters())
    dropped = task.batch([replace(task.sample((0, 4, 0)), is_dropped=True)])
    assert not torch.equal(dropped.context, task.batch([task.sample((0, 4, 0), drops=False)]).context)


def of_p3s(config: Path, *changes: str) -> Any:
    from training.tasks import p3s

    return p3s.Task(build(read(config, changes), config.parent, p3s.Data, p3s.Options, p3s.DEFAULTS))


def test_p3s_drops_the_reference_beside_the_text(subject: Path) -> None:
    task = of_p3s(subject)
    samples = [replace(task.sample((number, 4, 0)), is_dropped=number == 0) for number in (0, 3)]
    batch = task.batch(samples)
    assert batch.absent.tolist() == [True, False]
    latents, vision = batch.read(batch.targets)
    assert not latents[0].any() and not vision[0].any() and torch.equal(latents[1:], batch.reference)
    (words, shown), (said, read) = task.shown(batch)[0]
    assert "no words" in words and said == "not read" and shown.any() and not read.any()
    text = of_p3s(subject, "method.dropped=text").batch(samples)
    assert text.absent is None and torch.equal(text.context, batch.context)


def test_p3s_switches_of_the_method(subject: Path) -> None:
    task = of_p3s(subject, "method.rngr=false", "method.learned_weight=true", "method.where=none")
    losses = task.objective(task.batch([task.sample((0, 4, 0))]))
    losses["loss"].backward()
    assert losses["consistency"] == 0
    learning = {name.split(".")[1] for name, each in task.objective.named_parameters() if each.requires_grad}
    assert learning == {"unet", "zero_hidden", "zero_cross", "weight"}
    (subject.parent / "data" / "i1.mask.png").unlink()
    same = of_p3s(subject, "method.reference=same")
    batch = same.batch([same.sample((number, 4, 0)) for number in (0, 3)])
    assert torch.equal(batch.reference, batch.targets) and len(batch.vision) == 2


def test_p3s_goes_on_bit_for_bit_with_its_switches(subject: Path) -> None:
    switches = ("--set", "method.learned_weight=true", "--set", "method.where=all summed", "--set", "validate.every=0")
    assert train_here("p3s", subject, *switches, "--set", "train.steps=3", "--set", "output=whole") == 0
    assert train_here("p3s", subject, *switches, "--set", "train.steps=1") == 0
    assert train_here("p3s", subject, *switches, "--set", "train.steps=3", "--resume") == 0
    whole, resumed = subject.parent / "whole", subject.parent / "run"
    assert losses(whole) == losses(resumed) and len(losses(whole)) == 3
    first, second = (load_p3s(run / "p3s.safetensors") for run in (whole, resumed))
    assert all(torch.equal(weight, first.weights[name]) for name, weight in second.weights.items())
    assert first.negative == "empty reference" and "weight.out.weight" in first.weights
    started = of_p3s(subject, "models.start=run/p3s.safetensors", "method.learned_weight=true")
    assert torch.equal(started.objective.network.weight.out.weight, second.weights["weight.out.weight"])
    with pytest.raises(RuntimeError, match=r"The adapter of 'subject' does not fit: .* are unknown"):
        of_p3s(subject, "models.start=run/p3s.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("method.where=first", "where is 'first', but must be one of last, all, all summed, none"),
        ("method.dropped=reference", "dropped is 'reference', but must be one of text and reference, text"),
        ("method.reference=other", "reference is 'other', but must be one of any, same"),
        ("method.reference=same", "reference is 'same', so each picture of a batch has a mask of its own"),
        ("phase=[{steps = 1}, {steps = 1, rngr = false}]", "rngr is not the same in all phases"),
    ],
)
def test_p3s_refuses_switches_that_cannot_be(
    subject: Path, change: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_here("p3s", subject, "--set", change) == 2
    assert message in capsys.readouterr().err


def test_p3s_names_what_is_wrong(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"model.diffusion_model.of_something": torch.zeros(1)}, subject.parent / "other.safetensors")
    assert train_here("p3s", subject, "--set", "models.checkpoint=other.safetensors") == 2
    assert "models.checkpoint names" in (said := capsys.readouterr().err) and "no checkpoint that ComfyUI" in said
    assert train_here("p3s", subject, "--set", "data.prompt=a photo of a cup") == 2
    assert "prompt must contain {identifier}" in capsys.readouterr().err
    save_picture(subject.parent / "data" / "other.mask.png", torch.ones(8, 8))
    assert train_here("p3s", subject) == 2
    assert "other.mask.png is the mask of no picture" in capsys.readouterr().err
    (subject.parent / "data" / "other.mask.png").unlink()
    save_picture(subject.parent / "data" / "i2.mask.png", torch.ones(8, 8))
    assert train_here("p3s", subject) == 2
    assert "the mask of i2.png has another size" in capsys.readouterr().err
