"""The Refine nodes with a trained adapter, and on batches of pictures."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.utils
import pytest
import torch
from refattention.core.refine_by_align.adapter import size_in_training
from refattention.core.refine_by_align.files import save_adapter
from refattention.nodes.refine_by_align import RefineByAlign
from refattention.nodes.refine_by_align_files import RefineAlignLoad
from refattention.nodes.refine_by_align_stages import RefineAlign, RefineRegion
from refine_support import ALIGN, PAINT, Codec, adapter, base, prompt, vision
from torch import Tensor

GUIDED = {"context": 0.3, "working_size": 128}


def pictures(count: int, seed: int, height: int = 101, width: int = 133) -> Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(seed))


def masks(*places: tuple[int, int]) -> Tensor:
    found = torch.zeros(len(places), 101, 133)
    for mask, (row, column) in zip(found, places, strict=True):
        mask[row : row + 20, column : column + 30] = 1
    return found


def run(node: Any, **inputs: Any) -> tuple[Any, ...]:
    values: dict[str, Any] = {
        "model": base(),
        "vae": Codec(),
        "positive": prompt(1),
        "image": pictures(1, 1),
        "mask": masks((40, 50)),
        "reference_image": pictures(1, 2, 90, 70),
        "seed": 3,
        **GUIDED,
    }
    if node is not RefineRegion:
        values |= ALIGN
    if node is not RefineAlign:
        values |= {"negative": prompt(2), **PAINT}
    with torch.inference_mode():
        return tuple(node.execute(**{**values, **inputs}))


@pytest.fixture
def trained() -> dict[str, Any]:
    return {"adapter": adapter(), "clip_vision": vision()}


def test_both_stages_go_through_the_adapter(trained: dict[str, Any]) -> None:
    whole = run(RefineByAlign, **trained)
    heat, box, place, matched, _, crop = run(RefineAlign, **trained)
    assert torch.equal(heat, whole[1]) and [box] == whole[2] and torch.equal(place, whole[3]) and matched
    assert torch.equal(run(RefineRegion, reference_image=crop, **trained)[0], whole[0])
    other = run(RefineByAlign)
    assert not torch.equal(other[1], heat) and not torch.equal(other[0], whole[0])
    changed = (whole[0] != pictures(1, 1)).any(-1)[0]
    assert changed[40:60, 50:80].float().mean() > 0.9 and not changed[:30].any()


@pytest.mark.parametrize("node", [RefineByAlign, RefineAlign, RefineRegion])
def test_working_size_0_is_that_of_the_adapters_training(node: Any, trained: dict[str, Any]) -> None:
    origin = replace(trained["adapter"].origin, settings={"height": 96, "width": 128})
    ours = {**trained, "adapter": replace(trained["adapter"], origin=origin)}
    assert torch.equal(run(node, **ours, working_size=0)[0], run(node, **trained, working_size=128)[0])


@pytest.mark.parametrize("settings", [{}, {"height": "96", "width": None}, {"height": -8, "width": 0}])
def test_an_adapter_that_does_not_say_its_size_leaves_that_of_the_model(settings: dict[str, Any]) -> None:
    silent = replace(adapter(), origin=replace(adapter().origin, settings=settings))
    assert size_in_training(base(), silent) == size_in_training(base(), None) == 512


def test_auto_is_how_the_adapter_was_calibrated(trained: dict[str, Any]) -> None:
    auto = {"timesteps": "auto", "layers": "auto"}
    assert torch.equal(run(RefineAlign, **trained, **auto)[0], run(RefineAlign, **trained)[0])
    found = {"timesteps": "701", "layers": "output.0.0"}
    calibrated = replace(trained["adapter"], origin=replace(trained["adapter"].origin, look=found))
    ours = {"adapter": calibrated, "clip_vision": trained["clip_vision"]}
    wanted = run(RefineAlign, **trained, **found)[0]
    assert torch.equal(run(RefineAlign, **ours, **auto)[0], wanted)
    assert torch.equal(run(RefineByAlign, **ours, **auto)[1], wanted)
    assert not torch.equal(run(RefineAlign, **trained)[0], wanted)
    assert torch.equal(run(RefineAlign, **auto)[0], run(RefineAlign)[0])  # without an adapter: the usual


def test_with_an_adapter_the_reference_counts_and_the_text_does_not(trained: dict[str, Any]) -> None:
    want = run(RefineRegion, **trained)[0]
    assert torch.equal(run(RefineRegion, **trained, positive=prompt(8), negative=prompt(9))[0], want)
    assert not torch.equal(run(RefineRegion, **trained, reference_image=pictures(1, 4, 90, 70))[0], want)
    without = [
        run(RefineRegion, **trained, strength=0.0, reference_image=pictures(1, seed, 90, 70))[0] for seed in (2, 4)
    ]
    assert torch.allclose(*without, atol=1e-4) and not torch.allclose(without[0], want, atol=1e-2)


def test_the_connected_model_stays_as_it_is(trained: dict[str, Any]) -> None:
    patcher = base()
    before, weights = run(RefineRegion, model=patcher), patcher.model.state_dict()
    kept = {name: weight.clone() for name, weight in weights.items()}
    run(RefineByAlign, model=patcher, **trained)
    assert torch.equal(run(RefineRegion, model=patcher)[0], before[0])
    assert all(torch.equal(weight, kept[name]) for name, weight in patcher.model.state_dict().items())


def test_an_adapter_is_loaded_by_its_name(model_patches: Path, trained: dict[str, Any]) -> None:
    save_adapter(trained["adapter"], model_patches / "dino.safetensors")
    assert "dino.safetensors" in RefineAlignLoad.define_schema().inputs[0].options
    (loaded,) = RefineAlignLoad.execute("dino.safetensors")
    assert loaded.origin == trained["adapter"].origin
    changed_at = RefineAlignLoad.fingerprint_inputs("dino.safetensors")
    assert changed_at == (model_patches / "dino.safetensors").stat().st_mtime
    with pytest.raises(FileNotFoundError, match=r"no file 'none\.safetensors' in models/model_patches"):
        RefineAlignLoad.execute("none.safetensors")


def test_a_batch_is_repaired_picture_by_picture(caplog: pytest.LogCaptureFixture) -> None:
    images, places, references = pictures(3, 1), masks((40, 50), (0, 0), (70, 100)), pictures(3, 2, 90, 70)
    places[1] = 0
    searched = torch.zeros(3, 90, 70)
    searched[0, :45] = searched[1:, 45:] = 1
    alone = [
        run(
            RefineByAlign, image=images[[n]], mask=places[[n]], reference_image=references[[n]],
            reference_mask=searched[[n]],
        )
        for n in range(3)
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        image, heat, boxes, found, matched, warning = run(
            RefineByAlign, image=images, mask=places, reference_image=references, reference_mask=searched
        )
    for got, number in ((image, 0), (heat, 1), (found, 3)):
        assert torch.equal(got, torch.cat([one[number] for one in alone]))
    assert boxes == [one[2] for one in alone] and boxes[1] == []
    assert not matched and warning.startswith("Picture 2: mask is empty, so there is nothing to repair.")
    assert warning in caplog.text
    regions = run(RefineRegion, image=images, mask=places, reference_image=references)[0]
    second = run(RefineRegion, image=images[[2]], mask=places[[2]], reference_image=references[[2]])[0]
    assert torch.equal(regions[[2]], second) and torch.equal(regions[[1]], images[[1]])


def test_one_mask_and_one_reference_serve_all_pictures(trained: dict[str, Any]) -> None:
    images = pictures(2, 1)
    for node in (RefineByAlign, RefineRegion):
        both = run(node, image=images, **trained)[0]
        assert torch.equal(both, torch.cat([run(node, image=images[[n]], **trained)[0] for n in range(2)]))


@pytest.mark.parametrize("contrast", [0.0, 1e6], ids=["all match", "none does"])
def test_progress_is_that_of_all_pictures(monkeypatch: pytest.MonkeyPatch, contrast: float) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total)))
    two = masks((40, 50), (10, 10))
    two[1, 70:90, 90:120] = 1
    run(RefineByAlign, image=pictures(2, 1), mask=two, minimum_contrast=contrast)
    assert {total for _, total in seen} == {3 * PAINT["steps"]} and seen[-1][0] == seen[-1][1]
