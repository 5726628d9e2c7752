"""Adapters of Refine-by-Align as files and on models, and pictures as context."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from bootstrap import ROOT
from encoders import encoder
from messages import logged
from refattention.core.patches.unet import family
from refattention.core.refine_by_align.adapter import TrainedAdapter, for_model
from refattention.core.refine_by_align.files import load_adapter, save_adapter
from refattention.core.refine_by_align.reader import PatchReader
from refine_support import (
    CONTEXT_WIDTH,
    IMAGE_SIZE,
    VISION_WIDTH,
    adapter,
    base,
    digest,
    encoded,
    origin,
    painted,
    prompt,
    vision,
)
from safetensors.torch import save_file
from sampling import latent, sample
from torch import Tensor


def picture(patcher: Any) -> Tensor:
    return sample(patcher, latent(1, 4, 8, 12), prompt(1), prompt(2))


def applied(trained: TrainedAdapter, patcher: Any) -> tuple[Any, Any]:
    return for_model(trained, patcher, family(patcher))


def changed(trained: TrainedAdapter, **origin_changes: Any) -> TrainedAdapter:
    return dataclasses.replace(trained, origin=dataclasses.replace(trained.origin, **origin_changes))


def test_a_saved_adapter_gives_the_same_bits_in_a_fresh_process(tmp_path: Path) -> None:
    trained, path = adapter(), tmp_path / "adapter.safetensors"
    save_adapter(trained, path)
    loaded = load_adapter(path)
    assert loaded.origin == trained.origin and set(loaded.weights) == set(trained.weights)
    assert all(torch.equal(weight, trained.weights[name]) for name, weight in loaded.weights.items())
    program = [sys.executable, str(ROOT / "tests" / "support" / "refine_support.py"), str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    fresh = subprocess.run(program, capture_output=True, text=True, check=True, env=environment)
    assert fresh.stdout.split()[-1] == digest(painted(trained))


def test_other_files_are_no_adapters(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(RuntimeError, match=r"other\.safetensors is no Refine by Align adapter"):
        load_adapter(path)


@pytest.mark.parametrize("width", ["24", None, 0, -24, 2**40])
def test_origins_that_no_training_wrote_are_refused(tmp_path: Path, width: Any) -> None:
    path = tmp_path / "edited.safetensors"
    save_adapter(changed(adapter(), vision_width=width), path)
    with pytest.raises(RuntimeError, match=r"edited\.safetensors is no Refine by Align adapter"):
        load_adapter(path)


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    trained, path = adapter(), tmp_path / "rounded.safetensors"
    name = next(iter(trained.weights))
    whole = {**trained.weights, name: trained.weights[name].to(torch.int64)}
    save_adapter(dataclasses.replace(trained, weights=whole), path)
    with pytest.raises(RuntimeError, match=rf"rounded\.safetensors does not fit: {name} holds int64"):
        load_adapter(path)


def test_the_model_stays_as_it_is_and_the_clone_has_the_trained_weights() -> None:
    patcher, trained = base(), adapter()
    before, weights = picture(patcher), {name: each.clone() for name, each in patcher.model.state_dict().items()}
    patched, network = applied(trained, patcher)
    after = picture(patched)
    comfy.model_management.load_models_gpu([patched])
    loaded = patched.model.diffusion_model.state_dict()
    for name, weight in trained.weights.items():
        if name.startswith("unet."):
            assert torch.equal(loaded[name.removeprefix("unet.")], weight), name
    assert not torch.equal(after, before)
    assert not patcher.patches and torch.equal(picture(patcher), before)
    assert all(torch.equal(each, weights[name]) for name, each in patcher.model.state_dict().items())
    tokens = {name: each for name, each in trained.weights.items() if name.startswith("tokens.")}
    assert all(torch.equal(each, tokens[f"tokens.{name}"]) for name, each in network.model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("tokens.leave.bias"), r"1 of its 28 weights are missing \(tokens.leave.bias\)"),
        (lambda w: w.update({"unet.stray": torch.zeros(1)}), r"1 are unknown \(unet.stray\)"),
        (
            lambda w: w.update({"tokens.enter.weight": torch.zeros(3, 2)}),
            rf"tokens.enter.weight is 3x2 instead of {CONTEXT_WIDTH}x{VISION_WIDTH}",
        ),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_weights_that_do_not_fit_are_named(change: Any, message: str) -> None:
    trained = adapter()
    change(trained.weights)
    with pytest.raises(RuntimeError, match=rf"The adapter does not fit: .*{message}"):
        applied(trained, base())


def test_another_family_is_an_error_and_another_base_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    trained = adapter()
    with pytest.raises(RuntimeError, match="The adapter was trained for a SDXL model, but this is a SD15 model"):
        applied(changed(trained, family="SDXL"), base())
    with caplog.at_level(logging.WARNING):
        applied(trained, base())
        assert not logged(caplog)
        applied(changed(trained, base="another"), base())
    assert "The adapter was trained with another SD15 model than this one" in caplog.text


def test_tokens_are_made_of_the_last_patches_place_by_place() -> None:
    trained = adapter()
    _, network = applied(trained, base())
    shown = torch.rand(1, 40, 61, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        tokens, grid = PatchReader(vision(), network, trained.origin)(shown)
        x = encoded(shown).double()
    assert grid == (4, 4) and tokens.shape == (1, 16, CONTEXT_WIDTH)
    w = {name.removeprefix("tokens."): each.double() for name, each in trained.weights.items()}

    def norm(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    hidden = norm(x) @ w["enter.weight"].T
    hidden = norm(hidden / 2 * (1 + (hidden / 2**0.5).erf()) @ w["leave.weight"].T)
    assert (tokens[0].unflatten(0, (4, 4)) - hidden).abs().max() < 1e-4


def test_the_vision_encoder_must_be_the_one_of_the_training() -> None:
    patcher, trained = base(), adapter()
    _, network = applied(trained, patcher)
    with pytest.raises(ValueError, match=r"clip_vision reads pictures of 28 pixels, but .* trained with 518"):
        PatchReader(vision(), network, origin(patcher, 518))
    narrow = dataclasses.replace(trained.origin, vision_width=VISION_WIDTH * 2)
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match="gives tokens of width 32, but the adapter was trained with 64"),
    ):
        PatchReader(encoder("dino2"), network, narrow)(torch.rand(1, IMAGE_SIZE, IMAGE_SIZE, 3))
