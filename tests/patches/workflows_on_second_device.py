"""Every workflow of `workflows/api` but the one that trains, on a second device.

Nothing is mixed, and what nodes give lies in main memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management as management
import pytest
import workflow_here
from bootstrap import ROOT
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from second_device import DEVICE, OnSecond, second_device

API = ROOT / "workflows" / "api"
WITHOUT_DEVICE = {"deadiff_extract"}  # makes one file of another
TRAINING = {"p3s_train"}  # gradients need a real device
# In this order refdrop_kept finds what refdrop_keep has saved.
NAMES = sorted({str(path.relative_to(API).with_suffix("")) for path in API.rglob("*.json")} - TRAINING)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    workflow_here.write_files(folder)
    return folder


@pytest.fixture(scope="module")
def loaded() -> workflow_here.Loaded:
    return {}


def placed(output: Any) -> None:
    """Texts are encoded on the CPU, as ComfyUI does where that is as fast."""
    if isinstance(output, ClipVisionModel):
        output.load_device = output.patcher.load_device = DEVICE
    elif isinstance(output, ModelPatcher):
        output.load_device = DEVICE


@pytest.mark.parametrize("name", NAMES)
def test_no_workflow_mixes_devices(name: str, files: Path, loaded: workflow_here.Loaded) -> None:
    workflow = workflow_here.WorkflowHere(name, loaded)
    with pytest.MonkeyPatch.context() as patch, second_device() as counts:
        workflow_here.use_files(files, patch)
        patch.setattr(management, "get_torch_device", lambda: DEVICE)
        given = workflow.run(placed)
        assert sum(counts.up.values()) > 1000 or name in WITHOUT_DEVICE
    assert not any(isinstance(each, OnSecond) for outputs in given.values() for each in outputs)
