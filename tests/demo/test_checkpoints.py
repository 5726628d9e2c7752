"""The demo checkpoints: names as in real files, reproducible, recognised by the host, written once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import comfy.model_detection
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.utils
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.taesd.taesd import TAESD
from refattention_demo import configs, vision, weights
from refattention_demo.families import FAMILIES

UNET, VAE = "model.diffusion_model.", "first_stage_model."
FULL_SIZE = {
    "sd15": {"model_channels": 320, "channel_mult": [1, 2, 4, 4], "context_dim": 768, "num_heads": 8},
    "sdxl": {
        "model_channels": 320,
        "channel_mult": [1, 2, 4],
        "context_dim": 2048,
        "adm_in_channels": 2816,
        "num_head_channels": 64,
    },
}
REAL_CONFIG = {"sd15": comfy.supported_models.SD15, "sdxl": comfy.supported_models.SDXL}


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(family: str) -> dict[str, torch.Tensor]:
    return weights.state_dict(family)


def full_size_config(family: str, checkpoint: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What the host detects in the demo checkpoint, with the widths of the real model."""
    return comfy.model_detection.detect_unet_config(checkpoint, UNET) | FULL_SIZE[family]


def test_unet_has_the_names_of_the_real_one(family: str, checkpoint: dict[str, torch.Tensor]) -> None:
    real = UNetModel(**full_size_config(family, checkpoint), device="meta")
    assert names(checkpoint, UNET) == set(real.state_dict())


def test_text_encoders_have_the_names_of_the_real_ones(family: str, checkpoint: dict[str, torch.Tensor]) -> None:
    kind = {"sd15": comfy.sd1_clip.SD1ClipModel, "sdxl": comfy.sdxl_clip.SDXLClipModel}[family]
    config = REAL_CONFIG[family](full_size_config(family, checkpoint))
    real = config.process_clip_state_dict_for_saving(kind(device="meta").state_dict())
    text = {name for name in checkpoint if not name.startswith((UNET, VAE))}
    # The host leaves these numbers 0, 1, 2, ... out of SD1.5 files that it saves itself; the real file has them.
    assert text == set(real) | {name for name in text if name.endswith("position_ids")}


def test_codec_has_the_names_of_taesd(checkpoint: dict[str, torch.Tensor]) -> None:
    assert names(checkpoint, VAE) == set(TAESD().state_dict())


def test_a_seed_gives_the_same_tensors(family: str, checkpoint: dict[str, torch.Tensor]) -> None:
    assert digest(weights.state_dict(family, 0)) == digest(checkpoint)
    assert digest(weights.state_dict(family, 1)) != digest(checkpoint)


def test_detection_finds_the_demo_model(family: str, checkpoint: dict[str, torch.Tensor]) -> None:
    configs.register()
    found = comfy.model_detection.model_config_from_unet(checkpoint, UNET)
    assert type(found) is {"sd15": configs.DemoSD15, "sdxl": configs.DemoSDXL}[family]


def test_detection_still_finds_the_real_model(family: str, checkpoint: dict[str, torch.Tensor]) -> None:
    configs.register()
    real = UNetModel(**full_size_config(family, checkpoint), device="meta").state_dict()
    assert type(comfy.model_detection.model_config_from_unet(real, "")) is REAL_CONFIG[family]


def test_registering_twice_changes_nothing() -> None:
    configs.register()
    before = list(comfy.supported_models.models)
    configs.register()
    assert comfy.supported_models.models == before
    assert all(before.count(config) == 1 for config in configs.CONFIGS)


def test_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no demo model 'flux'.*sd15, sdxl"):
        weights.state_dict("flux")


def test_files_are_written_once(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "checkpoints"
    folder.mkdir(parents=True)
    own = folder / FAMILIES["sdxl"].file_name
    own.write_bytes(b"the user's own")
    weights.write_checkpoints(folder)
    written = folder / FAMILIES["sd15"].file_name
    assert sorted(path.name for path in folder.iterdir()) == sorted([own.name, written.name])
    assert own.read_bytes() == b"the user's own"

    tensors, metadata = comfy.utils.load_torch_file(str(written), return_metadata=True)
    assert "stand-in" in metadata["about"]
    for name, tensor in weights.state_dict("sd15").items():
        assert torch.equal(tensors[name], tensor.half() if tensor.is_floating_point() else tensor)


def test_the_vision_encoder_takes_little_of_the_disk_and_is_whole(tmp_path: Path) -> None:
    weights.write_vision_encoder(tmp_path)
    file = tmp_path / vision.FILE_NAME
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    tensors, metadata = comfy.utils.load_torch_file(str(file), return_metadata=True)
    assert metadata == {"format": "pt", "about": weights.ABOUT}
    expected = vision.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    assert file.stat().st_blocks * 512 < 0.1 * file.stat().st_size


def names(checkpoint: dict[str, torch.Tensor], prefix: str) -> set[str]:
    return {name.removeprefix(prefix) for name in checkpoint if name.startswith(prefix)}


def digest(tensors: dict[str, torch.Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode() + tensors[name].numpy().tobytes())
    return total.hexdigest()
