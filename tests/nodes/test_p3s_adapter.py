"""P3SInject with an adapter, and adapters as files."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from bootstrap import ROOT
from messages import is_clear, logged
from p3s_support import Eye, adapter, digest, inject, picture
from refattention.core.p3s.adapter import TrainedAdapter
from refattention.core.p3s.files import load_adapter, save_adapter
from refattention.nodes.p3s_files import P3SLoad, P3SSave
from safetensors.torch import save_file
from sampling import distance, model


@pytest.fixture(scope="module")
def trained() -> TrainedAdapter:
    return adapter()


def test_a_fresh_adapter_changes_nothing_unless_its_zeros_are_keys() -> None:
    fresh, plain = adapter(zeros=True), picture(model("sd15"))
    assert torch.equal(picture(inject(model("sd15"), adapter=fresh)), plain)
    assert distance(picture(inject(model("sd15"), adapter=fresh, identity_at_zero=False)), plain) > 1e-2


def test_a_trained_adapter_changes_the_picture_and_the_base_model_stays_as_it_is(trained: TrainedAdapter) -> None:
    patcher = model("sd15")
    plain, before = picture(patcher), {k: v.clone() for k, v in patcher.model.state_dict().items()}
    assert distance(picture(inject(patcher, adapter=trained)), plain) > 1e-2
    assert all(torch.equal(v, before[k]) for k, v in patcher.model.state_dict().items())
    assert torch.equal(picture(patcher), plain)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"clip_vision": None}, "An adapter is connected, but clip_vision is not"),
        ({"reference_image": None, "reference_latent": {"samples": torch.ones(1, 4, 9, 11)}}, "but reference_image"),
        ({"clip_vision": Eye(12)}, "tokens of width 12, but the adapter was trained with 24"),
    ],
)
def test_what_an_adapter_needs(trained: TrainedAdapter, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inject(model("sd15"), adapter=trained, **inputs)


def test_another_family_is_an_error_and_another_base_a_warning(
    trained: TrainedAdapter, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RuntimeError, match="trained for a DemoSD15 model, but this is a DemoSDXL"):
        inject(model("sdxl"), adapter=trained)
    with caplog.at_level(logging.WARNING):
        inject(model("sd15"), adapter=trained)
        assert not logged(caplog)
        other = dataclasses.replace(trained, origin=dataclasses.replace(trained.origin, base="another"))
        inject(model("sd15"), adapter=other)
    assert "was trained with another DemoSD15 model" in caplog.text


def test_weights_that_do_not_fit_are_named(trained: TrainedAdapter) -> None:
    weights = dict(trained.weights)
    del weights["encoder.to_q.weight"]
    with pytest.raises(RuntimeError, match=r"adapter of 'dog' does not fit: 1 of its .*encoder.to_q.weight"):
        inject(model("sd15"), adapter=dataclasses.replace(trained, weights=weights))


def test_a_saved_adapter_gives_the_same_bits_in_a_fresh_process(model_patches: Path, trained: TrainedAdapter) -> None:
    (name,) = P3SSave.execute(trained, "p3s/dog").args
    assert name == "p3s/dog_00001_.safetensors"
    loaded, prompt = P3SLoad.execute(name).args
    assert (loaded.origin, prompt) == (trained.origin, "a photo of sks dog")
    want = digest(picture(inject(model("sd15"), adapter=trained)))
    assert digest(picture(inject(model("sd15"), adapter=loaded))) == want
    program = [sys.executable, str(ROOT / "tests" / "support" / "p3s_support.py"), str(model_patches / name)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    fresh = subprocess.run(program, capture_output=True, text=True, check=True, env=environment)
    assert fresh.stdout.split()[-1] == want


def test_no_file_is_overwritten(model_patches: Path, trained: TrainedAdapter) -> None:
    names = [P3SSave.execute(trained, "dog")[0] for _ in range(2)]
    assert names == ["dog_00001_.safetensors", "dog_00002_.safetensors"]
    for prefix in ("../dog", "/tmp/dog", "dog/", ""):
        with pytest.raises(ValueError, match="filename_prefix must name a file below models/model_patches"):
            P3SSave.execute(trained, prefix)


def test_every_form_of_a_prefix_gets_the_next_number(model_patches: Path, trained: TrainedAdapter) -> None:
    names = [P3SSave.execute(trained, prefix)[0] for prefix in ("p3s/sub/.", "p3s/sub", "./p3s//x/../sub")]
    assert names == [f"p3s/sub_0000{number}_.safetensors" for number in (1, 2, 3)]
    (dated,) = P3SSave.execute(trained, "p3s/%year%-%month%").args
    assert dated == time.strftime("p3s/%Y-%m_00001_.safetensors")
    assert P3SSave.validate_inputs("p3s/sub") is True and P3SSave.validate_inputs(None) is True
    for prefix in ("../dog", "p3s/..", "", "p3s/"):
        assert "must name a file below" in str(P3SSave.validate_inputs(prefix))


def test_a_folder_may_be_a_link(model_patches: Path, tmp_path: Path, trained: TrainedAdapter) -> None:
    (tmp_path / "elsewhere").mkdir()
    (model_patches / "p3s").symlink_to(tmp_path / "elsewhere")
    names = [P3SSave.execute(trained, "p3s/dog")[0] for _ in range(2)]
    assert names == ["p3s/dog_00001_.safetensors", "p3s/dog_00002_.safetensors"]
    assert P3SLoad.execute(names[1])[0].origin == trained.origin
    (model_patches / "dog_00001_.safetensors").symlink_to(tmp_path / "nowhere")
    assert P3SSave.execute(trained, "dog")[0] == "dog_00002_.safetensors" and not (tmp_path / "nowhere").exists()


def test_a_number_that_is_taken_in_the_meantime(
    model_patches: Path, trained: TrainedAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model_patches / "dog_00001_.safetensors").write_text("mine")
    monkeypatch.setattr(os, "listdir", lambda _: [])
    assert P3SSave.execute(trained, "dog")[0] == "dog_00002_.safetensors"
    assert (model_patches / "dog_00001_.safetensors").read_text() == "mine"


@pytest.mark.parametrize("prefix", ["../dog", "link/dog", "file/dog", "n" * 300])
def test_what_was_trained_is_saved_somewhere_and_the_place_is_said(
    model_patches: Path, tmp_path: Path, trained: TrainedAdapter, prefix: str
) -> None:
    (model_patches / "link").symlink_to(tmp_path / "nowhere" / "at" / "all")
    (model_patches / "file").write_text("")
    if prefix == "link/dog":
        (model_patches / "link").unlink()
        (model_patches / "link").symlink_to(model_patches / "link")
    with pytest.raises((ValueError, RuntimeError)) as caught:
        P3SSave.execute(trained, prefix)
    path = tmp_path / "output" / "p3s" / "interrupted_00001_.safetensors"
    assert f"What was trained is kept in {path}; move it to" in str(caught.value) and is_clear(str(caught.value))
    assert load_adapter(path).origin == trained.origin


@contextmanager
def full_disk() -> Iterator[None]:
    """Files may not grow beyond a few bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_loses_nothing(model_patches: Path, trained: TrainedAdapter) -> None:
    P3SSave.execute(trained, "dog")
    before = {path.name: path.read_bytes() for path in model_patches.iterdir()}
    with full_disk(), pytest.raises(RuntimeError, match=r"dog_00002_.safetensors could not be written to .*Make room"):
        P3SSave.execute(trained, "dog")
    assert {path.name: path.read_bytes() for path in model_patches.iterdir()} == before
    assert P3SSave.execute(trained, "dog")[0] == "dog_00002_.safetensors"


def test_a_folder_that_cannot_be_written_is_named(model_patches: Path, trained: TrainedAdapter) -> None:
    (model_patches / "file").write_text("")
    with pytest.raises(RuntimeError, match=r"The folder of 'file/dog' in .* cannot be used"):
        P3SSave.execute(trained, "file/dog")
    with pytest.raises(RuntimeError, match=os.strerror(errno.ENOENT)):
        save_adapter(trained, model_patches / "missing" / "dog.safetensors")


def test_other_files_are_no_adapters(model_patches: Path) -> None:
    save_file({"weight": torch.zeros(1)}, model_patches / "other.safetensors")
    with pytest.raises(RuntimeError, match=r"other.safetensors is no P3S adapter"):
        load_adapter(model_patches / "other.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no file 'none.safetensors' in models/model_patches"):
        P3SLoad.execute("none.safetensors")
