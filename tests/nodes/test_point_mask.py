"""PointMask: what comes out of the node, and what wrong input is told."""

from __future__ import annotations

import inspect
import json
import random
import sys
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from encoders import encoder
from messages import is_clear
from PIL import Image
from refattention.nodes.point_mask import PointMask

pytestmark = pytest.mark.usefixtures("temporary_folder")
WIDGETS = {
    item.id: item.default for item in PointMask.GET_SCHEMA().inputs if getattr(item, "default", None) is not None
}
PLUS, MINUS = '[{"x": 12, "y": 30}]', '[{"x": 70, "y": 8}]'


def picture(frames: int = 1, height: int = 45, width: int = 83) -> torch.Tensor:
    """Left half red, right half blue, with some noise."""
    image = 0.1 * torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(0))
    image[:, :, : width // 2, 0] += 0.8
    image[:, :, width // 2 :, 2] += 0.8
    return image


@torch.inference_mode()
def run(image: torch.Tensor | None = None, plus: str = PLUS, minus: str = MINUS, **values: Any) -> Any:
    image = picture() if image is None else image
    return PointMask.execute(image, **{**WIDGETS, "positive_coords": plus, "negative_coords": minus, **values})


@pytest.mark.parametrize("clip", ["clip", "siglip2", "dino3", None])
@pytest.mark.parametrize("fit", ["stretch", "pad", "tiles"])
@pytest.mark.parametrize("size", [(45, 83), (83, 45), (16, 16), (17, 300)])
def test_shapes_and_ranges(clip: str | None, fit: str, size: tuple[int, int]) -> None:
    image = torch.rand(2, *size, 3, generator=torch.Generator().manual_seed(1))
    vision = None if clip is None else encoder(clip)
    plus, minus = '[{"x": 0, "y": 0}]', json.dumps([{"x": size[1] - 1, "y": size[0] - 1}])
    # Random weights tell little apart; a low threshold makes sure that something is selected.
    outputs = run(image, plus, minus, clip_vision=vision, fit=fit, feather=3, threshold=0.01, smoothing=0.0).args
    mask, negative, cleaned, heat, *texts = outputs
    assert mask.shape == negative.shape == (2, *size)
    assert cleaned.shape == heat.shape == (2, *size, 3)
    for each in outputs[:4]:
        assert each.dtype == torch.float32 and 0 <= each.min() and each.max() <= 1
    assert texts == [plus, minus]
    assert mask[:, 0, 0].all() and torch.equal(cleaned[negative == 0], image[negative == 0])


def test_discs_without_encoder() -> None:
    result = run(radius=5)
    mask, negative = result.args[:2]
    assert mask.sum() == negative.sum() == 81
    assert mask[0, 30, 12] == negative[0, 8, 70] == 1
    assert "No clip_vision is connected" in result.ui["refattention_points"][0]["note"]


def test_one_list_of_points_for_each_frame() -> None:
    plus = '[[{"x": 5, "y": 5}], [], [{"x": 50, "y": 40}]]'
    mask, negative, *_ = run(picture(3), plus, "[]", radius=3).args
    assert mask[0, 5, 5] and mask[2, 40, 50]
    assert not mask[1].any() and not negative.any()
    same = run(picture(3), '[{"x": 5, "y": 5}]', "[]", radius=3).args[0]
    assert torch.equal(same, mask[:1].expand(3, -1, -1))


def test_alpha_is_left_aside() -> None:
    image = torch.cat([picture(), torch.zeros(1, 45, 83, 1)], -1)
    assert run(image).args[2].shape == (1, 45, 83, 3)


def test_linked_text_may_be_empty() -> None:
    assert not run(minus="").args[1].any()


@pytest.mark.parametrize("side", [50, 2400])
def test_preview_files(side: int, temporary_folder: Path) -> None:
    image = torch.rand(1, side // 2, side, 3)
    (message,) = run(image, '[{"x": 1, "y": 2}]', "[]", radius=3).ui["refattention_points"]
    assert (message["width"], message["height"]) == (side, side // 2)
    for name in ("picture", "mask", "similarity"):
        assert message[name]["type"] == "temp"
        with Image.open(temporary_folder / message[name]["subfolder"] / message[name]["filename"]) as preview:
            assert preview.size == (min(side, 2048), min(side // 2, 1024))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"plus": "[]"}, "positive_coords holds no point", id="none"),
        pytest.param({"plus": "[[], []]"}, "positive_coords holds no point", id="none-in-frames"),
        pytest.param({"plus": '[{"x": 83, "y": 0}]'}, r"positive_coords .* 83 x 45 pixels: \(83, 0\)", id="outside"),
        pytest.param({"minus": '[{"x": 0, "y": -1}]'}, r"negative_coords .* 83 x 45 pixels: \(0, -1\)", id="above"),
        pytest.param({"plus": '[{"x": 1'}, "positive_coords is not valid JSON: .* line 1, column 9", id="json"),
        pytest.param({"minus": f"[{PLUS}, {PLUS}]"}, "negative_coords holds 2 lists .* 1 frame", id="frames"),
        pytest.param({"minus": PLUS}, r"The point \(12, 30\) is positive and negative at once", id="same-pixel"),
        pytest.param(
            {"clip_vision": "clip", "minus": '[{"x": 13, "y": 31}]'},
            r"positive point \(12, 30\) and the negative point \(13, 31\) lie on the same patch: .* 4 x 4 patches",
            id="same-patch",
        ),
        pytest.param({"clip_vision": "clip", "layer": 9}, "layer is 9, but this encoder has 4 layers", id="layer"),
        pytest.param(
            {"clip_vision": "clip", "image": torch.zeros(1, 45, 83, 3), "smoothing": 8.0, "threshold": 1.0,
             "minus": "[]", "plus": '[{"x": 40, "y": 20}]'},
            r"selects nothing .* at most 0[.]56, but the map was cut at 1[.]00[.] Set threshold to 0[.]50 \(0 finds",
            id="nothing",
        ),
        pytest.param(
            {"clip_vision": "clip", "threshold": 0.01, "smoothing": 0.0, "grow": -500}, "grow leave nothing", id="grow"
        ),
    ],
)  # fmt: skip
def test_errors(values: dict[str, Any], message: str) -> None:
    if "clip_vision" in values:
        values = {**values, "clip_vision": encoder(values["clip_vision"])}
    with pytest.raises(ValueError, match=message):
        run(**values)


@pytest.mark.parametrize(
    ("plus", "answer"),
    [
        (PLUS, True),
        (None, True),
        ("[]", "positive_coords holds no point"),
        ("{", "positive_coords is not valid JSON"),
    ],
)
def test_validation_before_the_run(plus: str | None, answer: bool | str) -> None:
    found = PointMask.validate_inputs(plus)
    assert found is True if answer is True else str(found).startswith(str(answer))


def test_one_mistake_is_reported_once() -> None:
    """The host repeats what is wrong for every input that the check names."""
    assert list(inspect.signature(PointMask.validate_inputs).parameters) == ["positive_coords"]


def test_cancel_stops_between_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def press_at_the_third_look() -> None:
        looks.append(1)
        if len(looks) == 3:
            raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(
        "refattention.core.patches.progress.throw_exception_if_processing_interrupted", press_at_the_third_look
    )
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(picture(5))
    assert len(looks) == 3


def test_without_opencv_only_the_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(RuntimeError, match=r"needs OpenCV, which is not installed\. Run `pip install"):
        run()


def test_an_opencv_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As opencv-python in a container without graphics libraries."""
    problem = "libGL.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "cv2.py").write_text(f"raise ImportError({problem!r})")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cv2")
    with pytest.raises(RuntimeError, match=r"installed, but cannot be loaded \(libGL\.so\.1: cannot open") as refused:
        run()
    assert is_clear(str(refused.value))


def test_10000_random_texts_give_a_mask_or_a_sentence() -> None:
    pieces = ["[", "]", "{", "}", '"x"', '"y"', ": ", ", ", "3", "-1", "1e400", "NaN", "null", '"', "\\", "\ud800",
              PLUS, MINUS, '{"x": 4, "y": 4}', '{"x": 70, "y": 40}', "[" * 3000]  # fmt: skip
    rng, masks, image = random.Random(7), 0, picture()
    texts = [PLUS, MINUS, "[]"]
    for _ in range(10_000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 6)))
        text = f"[{text}]" if rng.random() < 0.4 else text
        plus, minus = rng.sample([text, rng.choice(texts)], 2)
        try:
            masks += run(image, plus, minus).args[0].shape == (1, 45, 83)
        except ValueError as error:
            assert str(error).startswith(("positive_coords", "negative_coords", "The point ("))
            assert len(str(error)) < 400 and "Traceback" not in str(error)
    assert 300 < masks < 9_700
