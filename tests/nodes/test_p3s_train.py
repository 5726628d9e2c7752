"""P3STrain: what the widgets become, what wrong input is told, and what a cancelled training leaves."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from messages import logged
from p3s_support import IMAGE, Clip, Codec, Eye, inject, picture
from refattention.core.p3s import train_in_graph, training
from refattention.core.p3s.files import load_adapter
from refattention.core.p3s.training import Settings
from refattention.nodes.p3s_train import P3STrain
from sampling import distance, model

DEFAULTS = {
    item.id: item.default for item in P3STrain.GET_SCHEMA().inputs if getattr(item, "default", None) is not None
}
WIDGETS = {**DEFAULTS, "where": "last", "average": "mean", "epochs": 1, "learning_rate": 1e-3, "mixed_precision": False}
NO_MASKS: list[dict[str, Any]] = [{}, {"masks": [None]}]  # not connected, or to what gives nothing


def run(**inputs: Any) -> tuple[Any, torch.Tensor]:
    """The node as the host calls it."""
    given = {"clip": Clip(), "vae": Codec(), "clip_vision": Eye(), "images": IMAGE, **WIDGETS, **inputs}
    with torch.inference_mode():
        return P3STrain.execute(model("sd15"), **given).args


def test_what_comes_out_says_where_it_comes_from_and_injects() -> None:
    adapter, curve = run(identifier=" xyz ", class_word="cup", masks=torch.eye(9))
    origin = adapter.origin
    assert (origin.family, origin.identifier, origin.prompt) == ("DemoSD15", "xyz", "a photo of xyz cup")
    assert origin.settings == vars(Settings(epochs=1, learning_rate=1e-3))
    assert curve.shape == (1, 512, 768, 3) and 0 <= curve.min() < curve.max() <= 1
    assert distance(picture(inject(model("sd15"), adapter=adapter)), picture(model("sd15"))) > 1e-4


def test_a_list_of_pictures_of_several_sizes_is_one_training() -> None:
    """As the host calls it, with a list for every input."""
    other = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(2))
    inputs = {"clip": Clip(), "vae": Codec(), "clip_vision": Eye(), **WIDGETS, "epochs": 2}
    given = {name: [value] for name, value in inputs.items()}
    with torch.inference_mode():
        adapter, _ = P3STrain.execute([model("sd15")], **given, images=[IMAGE, other, IMAGE.flip(1)], masks=[
            torch.ones(1, 9, 9), torch.eye(8)[None], torch.ones(1, 5, 5)
        ]).args  # fmt: skip
        assert any(weight.any() for name, weight in adapter.weights.items() if "zero" in name)
        with pytest.raises(ValueError, match="seed is a list of 2, but P3S Train takes one: only images and masks"):
            P3STrain.execute([model("sd15")], **{**given, "seed": [1, 2]}, images=[IMAGE])
        with pytest.raises(ValueError, match="masks holds 2 masks for 3 pictures"):
            P3STrain.execute([model("sd15")], **given, images=[IMAGE] * 3, masks=[torch.ones(2, 9, 9)])
        unmasked, nothing = (P3STrain.execute([model("sd15")], **given, images=[IMAGE], **each)[0] for each in NO_MASKS)
        assert all(torch.equal(unmasked.weights[name], weight) for name, weight in nothing.weights.items())


def test_what_was_dropped_and_learned_is_used_as_it_was_trained(caplog: pytest.LogCaptureFixture) -> None:
    both, text = (run(dropped=way, learned_weight=True)[0] for way in ("text and reference", "text"))
    assert (both.negative, text.negative) == ("empty reference", "same reference")
    assert both.origin.settings["dropped"] == "text and reference" and "weight.out.weight" in both.weights
    trained, same = (
        picture(inject(model("sd15"), adapter=both, schedule="learned", negative=way))
        for way in ("as trained", "same reference")
    )
    assert not logged(caplog) and not torch.equal(trained, same)
    inject(model("sd15"), adapter=both)
    assert "has learned its own weight, but schedule is 'paper'" in caplog.text


def test_a_cancelled_training_goes_on_when_it_is_queued_again(
    model_patches: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    output = model_patches.with_name("output")
    settings = {"epochs": 3, "images": torch.cat([IMAGE, IMAGE.flip(1)]), "gradient_checkpointing": False}
    whole, curve = run(**settings)
    assert not output.exists()
    steps, real = [], training.Trainer.step

    def cancels(trainer: Any, batch: Any) -> Any:
        steps.append(batch)
        comfy.model_management.interrupt_current_processing(len(steps) == 3)
        return real(trainer, batch)

    with monkeypatch.context() as patched, caplog.at_level(logging.INFO):
        patched.setattr(training.Trainer, "step", cancels)
        with pytest.raises(InterruptProcessingException):
            run(**settings, resumable=True)
        (state,) = (output / "p3s").iterdir()
        assert f"Queued again, it goes on after step 2, from {state}." in caplog.text
        resumed, same_curve = run(**settings, resumable=True)
    assert len(steps) == 7 and "goes on after step 2" in caplog.text
    assert all(torch.equal(weight, whole.weights[name]) for name, weight in resumed.weights.items())
    assert torch.equal(curve, same_curve)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"images": IMAGE.expand(8, -1, -1, -1)}, "images is a batch of 8 pictures, but P3S Train takes 1 to 7"),
        ({"masks": torch.ones(2, 9, 9)}, "masks holds 2 masks for 1 pictures"),
        ({"masks": torch.zeros(1, 9, 9)}, "One of the masks is all black"),
        ({"identifier": " "}, "identifier is empty"),
        ({"class_word": ""}, "class_word is empty"),
        ({"prompt": "a photo of {identifier}"}, r"prompt is 'a photo of {identifier}', but must contain {class_word}"),
    ],
)
def test_wrong_input(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**inputs)


def test_another_architecture_is_named() -> None:
    other = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Identity()))
    with pytest.raises(RuntimeError, match="P3S Train cannot patch the attention of"):
        P3STrain.execute(other, Clip(), Codec(), Eye(), IMAGE, **WIDGETS)


@pytest.mark.parametrize("step", [1, 3])
def test_a_training_that_fails_keeps_what_it_has_learnt(
    step: int, model_patches: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps, real = [], training.Trainer.step

    def fails(trainer: Any, batch: Any) -> Any:
        steps.append(batch)
        if len(steps) == step:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(trainer, batch)

    monkeypatch.setattr(training.Trainer, "step", fails)
    with caplog.at_level(logging.WARNING), pytest.raises(torch.OutOfMemoryError) as caught:
        run(epochs=5)
    if step == 1:  # nothing has been learnt
        assert str(caught.value) == "CUDA out of memory." and not list(model_patches.iterdir())
        return
    (path,) = (model_patches / "p3s").iterdir()
    said = f"P3S Load has what there is so far as p3s/{path.name}."
    assert str(caught.value) == f"CUDA out of memory. {said}" and said in caplog.text
    learnt = load_adapter(path).weights
    assert any(weight.any() for name, weight in learnt.items() if "zero" in name)


def test_a_cancelled_training_leaves_a_file_that_loads(
    model_patches: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Cancelled by the second preview, which is a sampling run of its own."""
    monkeypatch.setattr(train_in_graph, "PREVIEW_STEPS", 1)
    decoded = []

    class Cancelling(Codec):
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            decoded.append(latents)
            comfy.model_management.interrupt_current_processing(len(decoded) == 2)
            return super().decode(latents)

    with caplog.at_level(logging.WARNING), pytest.raises(InterruptProcessingException):
        run(vae=Cancelling(), epochs=20, preview_every=1)
    (path,) = (model_patches / "p3s").iterdir()
    assert len(decoded) == 2 and decoded[0].shape == (1, 4, 9, 11)
    assert f"P3S Load has what there is so far as p3s/{path.name}" in caplog.text
    adapter = load_adapter(path)
    assert adapter.origin.class_word == "dog"
    assert distance(picture(inject(model("sd15"), adapter=adapter)), picture(model("sd15"))) > 1e-4
