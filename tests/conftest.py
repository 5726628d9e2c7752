"""Makes the host, the pack and the demo models importable for every test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

import bootstrap

bootstrap.name_packages()
# REFATTENTION_TEST_GPU=1 runs the same tests on the GPU.
bootstrap.prepare_host(cpu=not os.environ.get("REFATTENTION_TEST_GPU"), exact=True)


@pytest.fixture(autouse=True)
def no_dead_models() -> Iterator[None]:
    """Makes the host forget models whose patchers are gone while a cache of the tests still holds their weights.

    It takes them for a leak: at every load from then on it would warn, and collect garbage for a second.
    """
    yield
    if management := sys.modules.get("comfy.model_management"):
        loaded = management.current_loaded_models
        loaded[:] = [each for each in loaded if not each.is_dead()]


@pytest.fixture(autouse=True)
def no_old_listings() -> Iterator[None]:
    """Makes the host forget what files it found in a folder of a test, which is gone with the test."""
    yield
    if paths := sys.modules.get("folder_paths"):
        paths.filename_list_cache.clear()


@pytest.fixture
def outside_of_inference_mode() -> Iterator[None]:
    """As in a training; ComfyUI runs nodes in a mode whose tensors take no part in gradients."""
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        yield


@pytest.fixture
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's, for previews."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    return tmp_path


@pytest.fixture
def model_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for models/model_patches; beside it lies the output folder, which is not there yet."""
    import folder_paths

    folder = tmp_path / "patches"
    folder.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "model_patches", ([str(folder)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return folder
