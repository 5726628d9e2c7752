"""P3SInject with an adapter, and adapters as files."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from bootstrap import ROOT
from p3s_support import Eye, adapter, digest, inject, picture
from refattention.core.p3s.adapter import TrainedAdapter
from refattention.core.p3s.files import load_adapter, save_adapter
from refattention.nodes.p3s_files import P3SLoad, P3SSave
from safetensors.torch import save_file
from sampling import distance, model


@pytest.fixture(scope="module")
def trained() -> TrainedAdapter:
    return adapter()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for models/model_patches."""
    paths = {**folder_paths.folder_names_and_paths, "model_patches": ([str(tmp_path)], {".safetensors"})}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", paths)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


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
        ({"reference_image": None, "reference_latent": {"samples": torch.zeros(1, 4, 9, 11)}}, "but reference_image"),
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
        assert not caplog.records
        other = dataclasses.replace(trained, origin=dataclasses.replace(trained.origin, base="another"))
        inject(model("sd15"), adapter=other)
    assert "was trained with another DemoSD15 model" in caplog.text


def test_weights_that_do_not_fit_are_named(trained: TrainedAdapter) -> None:
    weights = dict(trained.weights)
    del weights["encoder.to_q.weight"]
    with pytest.raises(RuntimeError, match=r"adapter of 'dog' does not fit: 1 of its .*encoder.to_q.weight"):
        inject(model("sd15"), adapter=dataclasses.replace(trained, weights=weights))


def test_a_saved_adapter_gives_the_same_bits_in_a_fresh_process(folder: Path, trained: TrainedAdapter) -> None:
    (name,) = P3SSave.execute(trained, "p3s/dog").args
    assert name == "p3s/dog_00001_.safetensors"
    loaded, prompt = P3SLoad.execute(name).args
    assert (loaded.origin, prompt) == (trained.origin, "a photo of sks dog")
    want = digest(picture(inject(model("sd15"), adapter=trained)))
    assert digest(picture(inject(model("sd15"), adapter=loaded))) == want
    program = [sys.executable, str(ROOT / "tests" / "support" / "p3s_support.py"), str(folder / name)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    fresh = subprocess.run(program, capture_output=True, text=True, check=True, env=environment)
    assert fresh.stdout.split()[-1] == want


def test_no_file_is_overwritten(folder: Path, trained: TrainedAdapter) -> None:
    names = [P3SSave.execute(trained, "dog")[0] for _ in range(2)]
    assert names == ["dog_00001_.safetensors", "dog_00002_.safetensors"]
    for prefix in ("../dog", "/tmp/dog", "dog/", ""):
        with pytest.raises(ValueError, match="filename_prefix must name a file below models/model_patches"):
            P3SSave.execute(trained, prefix)


@contextmanager
def full_disk() -> Iterator[None]:
    """Files may not grow beyond a few bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_loses_nothing(folder: Path, trained: TrainedAdapter) -> None:
    P3SSave.execute(trained, "dog")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with full_disk(), pytest.raises(RuntimeError, match=r"dog_00002_.safetensors could not be written to .*Make room"):
        P3SSave.execute(trained, "dog")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert P3SSave.execute(trained, "dog")[0] == "dog_00002_.safetensors"


def test_a_folder_that_cannot_be_written_is_named(folder: Path, trained: TrainedAdapter) -> None:
    (folder / "file").write_text("")
    with pytest.raises(RuntimeError, match=r"The folder of 'file/dog' in .* cannot be used"):
        P3SSave.execute(trained, "file/dog")
    with pytest.raises(RuntimeError, match=os.strerror(errno.ENOENT)):
        save_adapter(trained, folder / "missing" / "dog.safetensors")


def test_other_files_are_no_adapters(folder: Path) -> None:
    save_file({"weight": torch.zeros(1)}, folder / "other.safetensors")
    with pytest.raises(RuntimeError, match=r"other.safetensors is no P3S adapter"):
        load_adapter(folder / "other.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no file 'none.safetensors' in models/model_patches"):
        P3SLoad.execute("none.safetensors")
