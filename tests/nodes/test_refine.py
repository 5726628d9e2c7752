"""RefineAlign, RefineRegion and RefineByAlign: what comes out, and what wrong input is told."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import comfy.model_base
import comfy.supported_models
import pytest
import torch
from comfy.controlnet import ControlBase
from p3s_support import Eye
from refattention.core.patches.reference_pass import Reference
from refattention.core.refdrop.settings import RefDropSettings
from refattention.core.refdrop.wrappers import apply_refdrop
from refattention.nodes.refine_by_align import RefineByAlign
from refattention.nodes.refine_by_align_inputs import size_of
from refattention.nodes.refine_by_align_stages import RefineAlign, RefineRegion
from refine_support import ALIGN, PAINT
from sampling import guide_all, latent, model, prompt
from torch import Tensor
from torch.nn import functional as F

WORK = {"context": 0.3, "working_size": 128}


class Codec:
    """A VAE that averages cells, with a shift of the colours on the way back."""

    def __init__(self, shift: tuple[float, float, float] = (0.0, 0.0, 0.0), channels: int = 4) -> None:
        self._shift, self._channels = torch.tensor(shift), channels

    def encode(self, picture: Tensor) -> Tensor:
        cells = F.avg_pool2d(picture.movedim(-1, 1), 8)
        return F.pad(cells - 0.5, (0, 0, 0, 0, 0, self._channels - 3))

    def decode(self, latent: Tensor) -> Tensor:
        return F.interpolate(latent[:, :3] + 0.5, scale_factor=8, mode="nearest").movedim(1, -1) + self._shift


def picture(height: int, width: int, seed: int) -> Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed))


def refdrop(mask: Tensor | None) -> Any:
    patcher = model("sd15")
    reference = Reference(latent(1, 4, 12, 12, seed=3), None, 5)
    return apply_refdrop(patcher, RefDropSettings(0.3, guide_all(patcher), reference, mask=mask))


def disc_mask(height: int, width: int, *discs: tuple[int, int, int]) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = [(y - v) ** 2 + (x - u) ** 2 < radius**2 for v, u, radius in discs]
    return torch.stack([torch.zeros(height, width, dtype=torch.bool), *inside]).any(0).float().unsqueeze(0)


def run(node: Any, **inputs: Any) -> tuple[Any, ...]:
    values = {
        "model": model("sd15"),
        "vae": Codec(),
        "positive": prompt("sd15", 1),
        "image": picture(101, 133, 1),
        "mask": disc_mask(101, 133, (50, 60, 15)),
        "reference_image": picture(90, 70, 2),
        "seed": 3,
        **WORK,
    }
    if node is not RefineRegion:
        values |= ALIGN
    if node is not RefineAlign:
        values |= {"negative": prompt("sd15", 2), **PAINT, "strength": 0.5}
    with torch.inference_mode():
        return tuple(node.execute(**{**values, **inputs}))


MASKS = {
    "inside": disc_mask(101, 133, (50, 60, 15)),
    "border": disc_mask(101, 133, (0, 5, 20)),
    "several": disc_mask(101, 133, (20, 20, 8), (80, 110, 10)),
    "full": torch.ones(1, 101, 133),
    "other size": disc_mask(50, 66, (25, 30, 9)),
}


@pytest.mark.parametrize("name", MASKS)
def test_only_mask_and_feather_change(name: str) -> None:
    mask = MASKS[name]
    image, heat, boxes, places, matched, warning = run(RefineByAlign, mask=mask)
    before = picture(101, 133, 1)
    changed = (image != before).any(-1)[0]
    grown = F.max_pool2d(F.interpolate(mask.unsqueeze(1), (101, 133)), 13, 1, 6)[0, 0] > 0
    assert not changed[~grown].any()
    assert changed[F.interpolate(mask.unsqueeze(1), (101, 133))[0, 0] > 0].float().mean() > 0.9
    assert len(boxes) == (2 if name == "several" else 1) and matched and not warning
    assert heat.shape == (1, 90, 70, 3) and places.shape == (1, 90, 70) and set(places.unique().tolist()) <= {0, 1}


WHOLE = torch.ones(1, 8, 8)


class NoControl(ControlBase):
    """A ControlNet that changes nothing."""

    def get_control(self, *_: Any) -> None:
        return None


@pytest.mark.parametrize(
    ("carried", "what"),
    [
        ({"positive": [[prompt("sd15", 1)[0][0], {"mask": WHOLE}]]}, "a mask of a prompt"),
        ({"negative": [[prompt("sd15", 2)[0][0], {"area": (16, 16, 0, 0)}]]}, "an area of a prompt"),
        ({"positive": [[prompt("sd15", 1)[0][0], {"control": NoControl()}]]}, "a ControlNet of a prompt"),
        ({"model": refdrop(WHOLE)}, "the mask of a node of this pack on the model"),
    ],
)
def test_what_lies_over_the_whole_picture_is_not_laid_over_a_part(carried: dict[str, Any], what: str) -> None:
    """In a window that is the whole picture it lies where it should."""
    for node in (RefineByAlign, RefineRegion):
        with pytest.raises(ValueError, match=f"is cut out of the picture, but {what} is made for all of it"):
            run(node, **carried)
        run(node, **carried, context=4.0, image=picture(128, 128, 1))
    run(RefineAlign, **{name: each for name, each in carried.items() if name != "negative"})  # paints nothing
    run(RefineByAlign, model=refdrop(None))


def test_empty_mask_changes_nothing_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    image, _, boxes, places, matched, warning = run(RefineByAlign, mask=torch.zeros(1, 64, 64))
    assert torch.equal(image, picture(101, 133, 1))
    assert (boxes, places.sum(), matched) == ([], 0, False)
    assert "mask is empty" in warning and warning in caplog.text
    (image,) = run(RefineRegion, mask=torch.zeros(1, 64, 64))
    assert torch.equal(image, picture(101, 133, 1))
    _, box, _, matched, warning, crop = run(RefineAlign, mask=torch.zeros(1, 64, 64))
    assert box == {"x": 0, "y": 0, "width": 70, "height": 90} and not matched and warning
    assert torch.equal(crop, picture(90, 70, 2))


def test_the_node_shows_how_it_went(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning that is only in the log and at an output is seen by nobody; one of a run before must not stay."""
    shown: list[str] = []
    monkeypatch.setattr("refattention.core.patches.node_text.text_on_node", lambda: shown.append)
    empty = torch.zeros(1, 64, 64)
    run(RefineRegion, mask=empty)
    run(RefineByAlign, mask=empty)
    assert shown == [shown[0]] * 2 and re.match("mask is empty.*Open in Mask Editor", shown[0])
    run(RefineRegion, mask=MASKS["several"])
    warning = run(RefineAlign, mask=MASKS["several"], minimum_contrast=50.0)[-2]
    assert shown[2] == "Repainted with the reference in view." and shown[3] == warning != ""
    run(RefineAlign, mask=MASKS["several"])
    assert shown[4:] == ["Matches in the reference: 1 of 1 areas."]


def test_a_reference_without_a_match_leaves_the_picture_and_says_so() -> None:
    image, _, boxes, _, matched, warning = run(RefineByAlign, mask=MASKS["several"], minimum_contrast=50.0)
    assert torch.equal(image, picture(101, 133, 1))
    assert len(boxes) == 2 and not matched
    assert "no match for 2 of 2 areas (number 1, 2); the best gets 1." in warning


def test_one_by_one_is_one_after_the_other_and_together_is_not() -> None:
    both = run(RefineByAlign, mask=MASKS["several"])[0]
    first = run(RefineByAlign, mask=disc_mask(101, 133, (20, 20, 8)))[0]
    second = run(RefineByAlign, mask=disc_mask(101, 133, (80, 110, 10)), image=first)[0]
    assert torch.equal(both, second)
    assert not torch.equal(run(RefineByAlign, mask=MASKS["several"], areas="together")[0], both)


def test_the_two_halves_are_the_whole() -> None:
    mask = {"mask": disc_mask(101, 133, (50, 60, 25))}
    whole = run(RefineByAlign, **mask)
    heat, box, place, matched, _, crop = run(RefineAlign, **mask)
    assert torch.equal(heat, whole[1]) and [box] == whole[2] and torch.equal(place, whole[3]) and matched
    assert crop.shape == (1, box["height"], box["width"], 3)
    assert torch.equal(run(RefineRegion, reference_image=crop, **mask)[0], whole[0])


def test_constant_colour_has_no_seam() -> None:
    constant = torch.tensor([0.25, 0.5, 0.625]).expand(1, 101, 133, 3).contiguous()
    (image,) = run(RefineRegion, image=constant, vae=Codec((0.06, -0.05, 0.03)), denoise=0.0)
    assert (image - constant).abs().max() < 1 / 512


def test_reference_mask_limits_the_search() -> None:
    where = torch.zeros(1, 90, 70)
    where[:, :, 40:] = 1
    _, box, place, _, _, _ = run(RefineAlign, reference_mask=where, margin=0.0)
    assert box["x"] >= 40 - 8 and place[:, :, :32].sum() == 0


def test_each_widget_has_its_effect() -> None:
    base = run(RefineByAlign)[0]
    for change in (
        {"strength": 0.0},
        {"seed": 4},
        {"steps": 3},
        {"cfg": 1.0},
        {"denoise": 0.5},
        {"sampler_name": "heun"},
        {"scheduler": "karras"},
        {"context": 1.0},
        {"working_size": 192},
        {"feather": 0},
        {"timesteps": "700"},
        {"layers": "input.1"},
        {"threshold": 0.9},
        {"margin": 0.5},
    ):
        assert not torch.equal(run(RefineByAlign, **change)[0], base), change


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"reference_image": picture(20, 20, 1).expand(3, -1, -1, -1)}, "reference_image is a batch of 3, but image"),
        ({"mask": torch.ones(2, 9, 9)}, "mask is a batch of 2, but image is one of 1. Give one for all pictures"),
        ({"reference_mask": torch.ones(2, 9, 9)}, "reference_mask is a batch of 2"),
        ({"reference_mask": torch.zeros(1, 9, 9)}, "reference_mask has nothing white"),
        ({"adapter": object()}, "adapter is connected, but clip_vision is not"),
        ({"clip_vision": Eye()}, "clip_vision is connected, but adapter is not"),
        ({"timesteps": "1000"}, "timesteps is '1000', but needs whole numbers from 0 to 999"),
        ({"timesteps": ""}, "timesteps is ''"),
        ({"layers": "output.99"}, "layers names 'output.99', which has no self-attention in this DemoSD15 model"),
        ({"vae": Codec(channels=16)}, r"What vae makes of a picture has the shape \(1, 16, "),
    ],
)
def test_wrong_input(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(RefineByAlign, **inputs)


def test_aligning_alone_takes_one_picture() -> None:
    for name in ("image", "reference_image"):
        with pytest.raises(ValueError, match=f"{name} holds 2 pictures, but one is needed"):
            run(RefineAlign, **{name: picture(20, 20, 1).expand(2, -1, -1, -1)})


@pytest.mark.parametrize(
    ("host_class", "kind", "size"),
    [("SD15", "EPS", 512), ("SD20", "EPS", 512), ("SD20", "V_PREDICTION", 768), ("SDXL", "EPS", 1024)],
)
def test_working_size_0_is_that_of_the_training(host_class: str, kind: str, size: int) -> None:
    kinds = {"SDXL": comfy.model_base.SDXL}
    base = kinds.get(host_class, comfy.model_base.BaseModel).__new__(kinds.get(host_class, comfy.model_base.BaseModel))
    torch.nn.Module.__init__(base)
    base.model_config = object.__new__(getattr(comfy.supported_models, host_class))
    base.model_type = comfy.model_base.ModelType[kind]
    patcher = SimpleNamespace(model=base)
    assert size_of(patcher, 0) == size
    assert size_of(patcher, 640) == 640
    with pytest.raises(ValueError, match="working_size is 32, but must be 0 or at least 64"):
        size_of(patcher, 32)
