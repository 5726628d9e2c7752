"""Recordings as files: the same picture in a fresh process, and no picture with what they were not made for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import comfy.sd
import pytest
import torch
from bootstrap import ROOT
from comfy_extras.nodes_model_merging import ModelMergeSimple
from families import FAMILIES, tiny_latent, tiny_model, tiny_prompt
from messages import is_clear
from refattention.core.models import checkpoint, origin
from refattention.core.patches.families.table import attentions_of
from refattention.core.refdrop.files import KEY, load_run, save_run
from refattention.core.refdrop.past_run import PastRun
from refattention.core.refdrop.recorded_run import RecordedRun
from refattention.core.refdrop.recorder import apply_recorder
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from sampling import distance, held_in, sample
from torch import Tensor

LAYER = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_k"


def run(family: str, patcher: Any, seed: int, **settings: Any) -> Tensor:
    prompts = (tiny_prompt(family, number) for number in (1, 2))
    return sample(patcher, tiny_latent(family, seed=seed), *prompts, **{"cfg": FAMILIES[family].cfg, **settings})


def record(family: str, model: Any = None, **settings: Any) -> RecordedRun:
    model = model or tiny_model(family)
    recorded = RecordedRun(model, frozenset(attentions_of(model, "test").blocks), 1, 2**26, False, sampling="euler")
    run(family, apply_recorder(model, recorded), 0, **settings)
    return recorded


def guided(model: Any, recorded: PastRun, **settings: Any) -> Any:
    blocks = frozenset(attentions_of(model, "test").blocks)
    return apply_refdrop(model, RefDropSettings(0.4, blocks, recorded=recorded, **settings))


def saved(recorded: PastRun, folder: Path) -> Path:
    path = folder / "character.safetensors"
    save_run(recorded, path)
    return path


def lora(strength: float = 0.8, seed: int = 0, bypass: bool = False) -> Any:
    """A model with a LoRA, as the host's loader puts it there."""
    generator = torch.Generator().manual_seed(seed)
    width = tiny_model("sd15").get_model_object(f"{LAYER}.weight").shape[0]
    weights = {
        f"{LAYER}.lora_up.weight": torch.randn(width, 4, generator=generator),
        f"{LAYER}.lora_down.weight": torch.randn(4, width, generator=generator),
        f"{LAYER}.alpha": torch.tensor(4.0),
    }
    load = comfy.sd.load_bypass_lora_for_models if bypass else comfy.sd.load_lora_for_models
    model, _ = load(tiny_model("sd15"), None, weights, strength, 0)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_recording_gives_the_same_picture(family: str, tmp_path: Path) -> None:
    recorded = record(family)
    loaded = load_run(saved(recorded, tmp_path))
    want = run(family, guided(tiny_model(family), recorded), 1)
    assert torch.equal(run(family, guided(tiny_model(family), loaded), 1), want)
    assert distance(run(family, tiny_model(family), 1), want) > 1e-4
    assert (loaded.size, loaded.schedule, loaded.sampling) == (recorded.size, recorded.schedule, "euler")


FRESH = """
import conftest
import sys, torch
from test_recording_files import guided, load_run, lora, run
torch.save(run("sd15", guided(lora(), load_run(sys.argv[1])), 1), sys.argv[2])
"""


def test_in_a_fresh_process(tmp_path: Path) -> None:
    """With the LoRA of the recording, loaded anew."""
    model = lora()
    recorded = record("sd15", model)
    want = run("sd15", guided(model, recorded), 1)
    command = [sys.executable, "-c", FRESH, str(saved(recorded, tmp_path)), str(tmp_path / "picture.pt")]
    folders = os.pathsep.join((str(ROOT / "tests"), str(ROOT / "tests" / "refdrop")))
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": folders}, timeout=120)
    assert torch.equal(torch.load(tmp_path / "picture.pt"), want)


def test_what_masks_cut_of_a_loaded_reference(tmp_path: Path) -> None:
    recorded = record("sd15")
    loaded = load_run(saved(recorded, tmp_path))
    mask = {"reference_mask": torch.eye(8)[None], "mask": torch.eye(8)[None]}
    pictures = [run("sd15", guided(tiny_model("sd15"), each, **mask), 1) for each in (recorded, loaded)]
    assert torch.equal(*pictures)


def test_the_same_lora_loaded_anew_is_taken(tmp_path: Path) -> None:
    """Loaded or not: ComfyUI keeps other weights in the model while a LoRA is on it."""
    model = lora()
    run("sd15", model, 0)
    loaded = load_run(saved(record("sd15", model), tmp_path))
    guided(model, loaded)
    guided(lora(), loaded)


def test_another_precision_of_the_same_checkpoint_is_taken(tmp_path: Path) -> None:
    """The picture differs by the rounding. In 8 bits, which CPUs do not compute in, whichever was recorded."""
    plain, half = tiny_model("flux"), tiny_model("flux", torch.float16)
    low = held_in(plain, torch.float8_e4m3fn)
    loaded = load_run(saved(record("flux", plain), tmp_path))
    want = run("flux", guided(half, record("flux", half)), 1)
    assert distance(run("flux", guided(half, loaded), 1), want) < 1e-2 < distance(run("flux", half, 1), want)
    guided(low, loaded)
    RecordedRun(low, frozenset(), 1, 0, False).check(plain, frozenset())


@pytest.mark.parametrize(
    "other", [tiny_model, lambda _: lora(0.7), lambda _: lora(seed=1)], ids=["none", "strength", "lora"]
)
def test_another_lora_is_refused(other: Any, tmp_path: Path) -> None:
    loaded = load_run(saved(record("sd15", lora()), tmp_path))
    with pytest.raises(ValueError, match=r"recorded with other weights \(a LoRA\) than the connected model"):
        guided(other("sd15"), loaded)


def test_another_model_is_refused(tmp_path: Path) -> None:
    loaded = load_run(saved(record("sd15"), tmp_path))
    with pytest.raises(ValueError, match="recorded with a SD15 model, but the connected one is Flux"):
        guided(tiny_model("flux"), loaded)
    other = tiny_model("sd15")
    other.model = type(other.model)(other.model.model_config)
    with pytest.raises(ValueError, match="recorded with another checkpoint than"):
        guided(other, loaded)


@pytest.mark.parametrize("settings", [{"steps": 4}, {"sampler": "dpm_2"}], ids=["steps", "sampler"])
def test_another_schedule_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    loaded, steps = load_run(saved(record("sd15"), tmp_path)), []
    with pytest.raises(ValueError, match=r"the cache holds 3 noise levels from .* \(euler\), but this sampler asks"):
        run("sd15", guided(tiny_model("sd15"), loaded), 1, callback=lambda step, *_: steps.append(step), **settings)
    assert not steps


def test_a_part_of_the_schedule_is_enough(tmp_path: Path) -> None:
    """Steps outside of start_percent and end_percent need not be recorded."""
    loaded = load_run(saved(record("sd15", steps=4), tmp_path))
    model = tiny_model("sd15")
    with pytest.raises(ValueError, match="the cache holds 4 noise levels"):
        run("sd15", guided(model, loaded), 1, steps=3)
    run("sd15", guided(model, loaded, end_percent=0.01), 1, steps=3)


def test_a_lora_beside_the_weights_cannot_be_saved(tmp_path: Path) -> None:
    model = lora(bypass=True)
    recorded = record("sd15", model)
    guided(model, recorded)
    with pytest.raises(ValueError, match="other weights"):
        guided(lora(bypass=True), recorded)
    with pytest.raises(ValueError, match=r"RefDrop Save: the model of cache .* a LoRA beside them") as refused:
        saved(recorded, tmp_path)
    assert is_clear(str(refused.value)) and not list(tmp_path.iterdir())


def test_merged_models(tmp_path: Path) -> None:
    """A merge is a patch of all weights: the same one made anew is taken, one with another ratio is not."""

    def merged(ratio: float) -> Any:
        return ModelMergeSimple().merge(lora(), tiny_model("sd15"), ratio)[0]

    loaded = load_run(saved(record("sd15", merged(0.5)), tmp_path))
    guided(merged(0.5), loaded)
    with pytest.raises(ValueError, match="recorded with other weights"):
        guided(merged(0.4), loaded)


def test_weights_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A format of another pack: recording goes on as ever, saving says why not."""

    def unreadable(_: Any) -> str:
        raise NotImplementedError

    monkeypatch.setattr(origin, "fingerprint", unreadable)
    recorded = record("sd15")
    assert torch.isfinite(run("sd15", guided(tiny_model("sd15"), recorded), 1)).all()
    with pytest.raises(ValueError, match="RefDrop Save: the model of cache has weights"):
        saved(recorded, tmp_path)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = saved(record("sd15"), tmp_path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        saved(record("sd15", steps=2), tmp_path)
    assert path.read_bytes() == before and [path] == list(tmp_path.iterdir())


def _without_a_tensor(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors.pop(next(iter(tensors)))


def _with_another(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors["more"] = torch.zeros(1)


def _with_another_shape(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    name = next(iter(tensors))
    tensors[name] = tensors[name][:, 1:].contiguous()


def _without_a_level(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    about["levels"].pop()


def _newer(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    about["version"] += 1


def _nonsense(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    about["levels"] = "many"


def _without_tokens(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    about["levels"][0]["records"][0]["grid"] = [0, 4]


def _endless(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    about["references"] = float("inf")


@pytest.mark.parametrize(
    "damage",
    [
        *(_without_a_tensor, _with_another, _with_another_shape, _without_a_level, _newer, _nonsense),
        *(_without_tokens, _endless),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(damage: Any, tmp_path: Path) -> None:
    path = saved(record("sd15"), tmp_path)
    tensors, about = checkpoint.load(path), json.loads(checkpoint.load_metadata(path)[KEY])
    damage(about, tensors)
    checkpoint.save(tensors, tmp_path / "damaged.safetensors", {KEY: json.dumps(about)})
    with pytest.raises(RuntimeError, match=r"damaged\.safetensors is a damaged recording of RefDrop") as refused:
        load_run(tmp_path / "damaged.safetensors")
    assert is_clear(str(refused.value))


def test_another_file_is_refused(tmp_path: Path) -> None:
    checkpoint.save({"weight": torch.zeros(2)}, tmp_path / "lora.safetensors", {})
    with pytest.raises(RuntimeError, match=r"lora\.safetensors is no recording of RefDrop"):
        load_run(tmp_path / "lora.safetensors")
    path = saved(record("sd15"), tmp_path)
    (tmp_path / "half.safetensors").write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(RuntimeError, match=r"half\.safetensors cannot be read as a checkpoint"):
        load_run(tmp_path / "half.safetensors")
