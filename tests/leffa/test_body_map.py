"""DensePose pictures of every kind: told by their content, read exactly, and made into what a checkpoint needs."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import bodies
import cv2
import folder_paths
import numpy
import pytest
import torch
from bodies import jpeg, picture
from bootstrap import ROOT
from PIL import Image
from refattention.core.leffa import body_map
from refattention.core.leffa.body_map import BLACK, FORMATS, IUV, PARTS, PARULA, PHOTOGRAPH, UVI, VIRIDIS, VUI, BodyMap
from refattention.core.leffa.slim import slim
from refattention.nodes.leffa import LeffaLoader, LeffaPoseTransfer, LeffaTryOn
from refattention.nodes.leffa_body_map import AS_MODEL, LeffaBodyMap
from safetensors.torch import save_file
from torch import Tensor
from tryon import AveragingVAE, half_mask, weights

GOLDEN = numpy.load(ROOT / "tests" / "golden" / "leffa_masks.npz")
MAPS = {PARULA: cv2.COLORMAP_PARULA, VIRIDIS: cv2.COLORMAP_VIRIDIS}
CHECKPOINTS = {"virtual_tryon": PARULA, "virtual_tryon_dc": PARTS, "pose_transfer": UVI}
KINDS = [PARULA, VIRIDIS, PARTS, IUV, UVI, BLACK, PHOTOGRAPH]


def rendered(labels: Any, kind: str) -> Any:
    """A part map in the colours of OpenCV, as comfyui_controlnet_aux draws it."""
    colours = cv2.applyColorMap((labels * numpy.float32(255 / 24)).astype(numpy.uint8), MAPS[kind])[..., ::-1]
    return colours if kind == VIRIDIS else numpy.where(labels[..., None] > 0, colours, 0)


def photograph() -> Any:
    with Image.open(ROOT / "demo" / "person.jpg") as picture:
        return numpy.asarray(picture.convert("RGB").resize((384, 512)))


def drawn(labels: Any, kind: str) -> Any:
    """A picture of one of the seven kinds."""
    u, v = bodies.uv(labels)
    return {
        PARULA: lambda: rendered(labels, PARULA),
        VIRIDIS: lambda: rendered(labels, VIRIDIS),
        PARTS: lambda: numpy.stack([labels] * 3, axis=-1),
        IUV: lambda: numpy.stack([labels, u, v], axis=-1),
        UVI: lambda: numpy.stack([u, v, labels], axis=-1),
        BLACK: lambda: numpy.zeros((*labels.shape, 3), dtype=numpy.uint8),
        PHOTOGRAPH: photograph,
    }[kind]()


def test_colours_are_opencvs_and_leffas() -> None:
    every = numpy.arange(25, dtype=numpy.uint8)[None]
    for kind in (PARULA, VIRIDIS):
        assert numpy.array_equal(body_map.draw(BodyMap(every), kind), rendered(every, kind))
    assert numpy.array_equal(body_map.draw(BodyMap(every), PARULA)[0], GOLDEN["densepose_seg_palette_rgb"])


@pytest.mark.parametrize("kind", [PARULA, VIRIDIS])
def test_parts_of_20_bodies_from_colours(kind: str) -> None:
    for seed in range(20):
        labels = bodies.parts(seed)
        exact = rendered(labels, kind)
        assert body_map.kind_of(exact) == kind
        assert numpy.array_equal(body_map.read_map(exact, kind).parts, labels)
        lossy = jpeg(exact)
        assert body_map.kind_of(lossy) == kind
        assert (body_map.read_map(lossy, kind).parts == labels).mean() >= 0.995, seed


@pytest.mark.parametrize("kind", [PARULA, VIRIDIS])
def test_small_and_scaled_colours(kind: str) -> None:
    for seed in range(4):
        labels = bodies.parts(seed, 240, 320)
        small = jpeg(rendered(labels, kind))
        assert (body_map.read_map(small, kind).parts == labels).mean() >= 0.995
        tiny = jpeg(rendered(bodies.parts(seed, 96, 128), kind))
        assert body_map.kind_of(tiny) == kind
        smooth = numpy.asarray(Image.fromarray(rendered(labels, kind)).resize((480, 640), Image.Resampling.BICUBIC))
        assert body_map.kind_of(smooth) == kind
        parts = body_map.read_map(smooth, kind).parts
        assert (parts == labels.repeat(2, 0).repeat(2, 1)).mean() > 0.985
        one_off = rendered(labels, kind).astype(int) + numpy.random.default_rng(seed).integers(-1, 2, (320, 240, 3))
        one_off = one_off.clip(0, 255).astype(numpy.uint8)
        assert numpy.array_equal(body_map.read_map(one_off, body_map.kind_of(one_off)).parts, labels)


def test_round_trip_through_every_format() -> None:
    labels = bodies.parts(1)
    full = BodyMap(labels, bodies.uv(labels))
    for path in itertools.permutations(FORMATS, 2):
        body = full
        for kind in (path[0], *path, path[0]):
            body = body if body.uv is not None else BodyMap(body.parts, full.uv)
            pixels = body_map.draw(body, kind)
            assert body_map.kind_of(pixels) == kind
            body = body_map.read_map(pixels, kind)
            assert numpy.array_equal(body.parts, labels)
            assert body.uv is None or numpy.array_equal(body.uv, full.uv)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_told(kind: str) -> None:
    for seed in range(5):
        assert body_map.kind_of(drawn(bodies.parts(seed), kind)) == kind


@pytest.mark.parametrize(
    "pixels",
    [
        photograph(),
        photograph() // 4,
        photograph().mean(axis=-1, keepdims=True).astype(numpy.uint8).repeat(3, axis=-1),
        numpy.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=numpy.uint8),
        numpy.full((64, 48, 3), 255, dtype=numpy.uint8),
        photograph() // 2 + rendered(bodies.parts(0), PARULA) // 2,
    ],
    ids=["colour", "dark", "grey", "noise", "white", "overlay"],
)
def test_other_pictures_are_none(pixels: Any) -> None:
    assert body_map.kind_of(pixels) == PHOTOGRAPH


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The three checkpoints, through the loader."""
    folder = tmp_path_factory.mktemp("models")
    for name in CHECKPOINTS:
        save_file(weights("sdxl" if name == "pose_transfer" else "sd15"), folder / f"{name}.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        folders = {**folder_paths.folder_names_and_paths, "diffusion_models": ([str(folder)], {".safetensors"})}
        patch.setattr(folder_paths, "folder_names_and_paths", folders)
        return {name: LeffaLoader.execute(f"{name}.safetensors", 0)[0] for name in CHECKPOINTS}


def enter(checkpoint: str, model: Any, densepose: Tensor) -> Any:
    """What the sampling node makes of a picture: its channels for the U-Net."""
    size = densepose.shape[1:3]
    person, options = torch.rand(1, *size, 3), ("every step", 1, True)
    if checkpoint == "pose_transfer":
        outputs = LeffaPoseTransfer.execute(model, AveragingVAE(), person, densepose, *options)
    else:
        outputs = LeffaTryOn.execute(model, AveragingVAE(), person, person, densepose, half_mask(*size), *options)
    return outputs[1][0][1]["noise_concat"][:, 5:]


def table() -> dict[tuple[str, str], bool]:
    """What the help page says: (kind, checkpoint) -> whether there is a map for it."""
    text = (ROOT / "web" / "docs" / "LeffaBodyMap.md").read_text(encoding="utf-8")
    head, _, *rows = (line.strip("| ").split(" | ") for line in re.findall(r"^\|.*\|$", text, re.M)[: len(KINDS) + 2])
    checkpoints = [name.strip("`") for name in head[1:]]
    said = {}
    for kind, *cells in rows:
        for checkpoint, cell in zip(checkpoints, cells, strict=True):
            assert cell.startswith(("yes", "refused"))
            said[kind, checkpoint] = cell.startswith("yes")
    assert said.keys() == set(itertools.product(KINDS, CHECKPOINTS))
    return said


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_for_every_checkpoint(loaded: dict[str, Any], checkpoint: str, kind: str) -> None:
    """The right map or a refusal, through LeffaBodyMap and at the door, and as the help page says it."""
    labels, model, needed = bodies.parts(3), loaded[checkpoint], CHECKPOINTS[checkpoint]
    given, want = picture(drawn(labels, kind)), picture(drawn(labels, needed))
    if kind == needed:
        assert torch.equal(enter(checkpoint, model, given), want[:, ::8, ::8].movedim(-1, 1) * 2 - 1)
    else:
        way = {
            BLACK: "DensePose found nobody",
            PHOTOGRAPH: "no DensePose picture. Leffa DensePose makes one",
        }.get(kind, "map with Leffa DensePose" if needed == UVI and kind != IUV else "Put Leffa Body Map between")
        with pytest.raises(ValueError, match=f"^densepose .*{way}"):
            enter(checkpoint, model, given)
    if table()[kind, checkpoint]:
        assert torch.equal(LeffaBodyMap.execute(given, AS_MODEL, "auto", model)[0], want)
    else:
        with pytest.raises(ValueError, match=r"^densepose "):
            LeffaBodyMap.execute(given, AS_MODEL, "auto", model)


def test_what_a_checkpoint_needs_travels_with_it(loaded: dict[str, Any]) -> None:
    for name, needed in CHECKPOINTS.items():
        assert loaded[name].clone().model.body_map == needed
        initializer, arguments = loaded[name].cached_patcher_init
        assert initializer(*arguments).model.body_map == needed


def test_weights_tell_part_numbers_whatever_the_name() -> None:
    first = torch.randn(8, 12, 3, 3)
    assert body_map.kind_needed(first, False, "mine.safetensors") == PARULA
    assert body_map.kind_needed(first, True, "mine_dc.safetensors") == UVI
    for name in ("virtual_tryon_dc.pth", "Leffa-DressCode.safetensors", "dress_code_fp16.safetensors"):
        assert body_map.kind_needed(first, False, name) == PARTS
    assert body_map.kind_needed(first, False, "wardcase.safetensors") == PARULA
    first[:, 9:] = first[:, 9:10] + 1e-4 * torch.randn(8, 3, 3, 3)
    assert body_map.kind_needed(first, False, "mine.safetensors") == PARTS


def test_loader_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {**folder_paths.folder_names_and_paths, "diffusion_models": ([str(tmp_path)], {".safetensors"})}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", folders)
    save_file(weights(), tmp_path / "mine.safetensors")
    assert LeffaLoader.execute("mine.safetensors", 0, PARTS)[0].model.body_map == PARTS
    save_file(weights(), tmp_path / "posed.safetensors", {body_map.METADATA: UVI})
    slim(tmp_path / "posed.safetensors", tmp_path / "slim.safetensors")
    save_file(weights(), tmp_path / "unknown_dc.safetensors", {body_map.METADATA: "of another program"})
    for name, kind in {"posed": UVI, "slim": UVI, "unknown_dc": PARTS}.items():
        assert LeffaLoader.execute(f"{name}.safetensors", 0)[0].model.body_map == kind


def test_size_of_the_person() -> None:
    labels = bodies.parts(0)
    person = torch.zeros(1, 1024, 768, 3)
    large = LeffaBodyMap.execute(picture(rendered(labels, PARULA)), PARTS, "auto", image=person)[0]
    assert torch.equal(large, picture(drawn(labels.repeat(2, 0).repeat(2, 1), PARTS)))
    # A detector that works at 512 gives 682.67 rows as 683
    odd = picture(rendered(bodies.parts(0, 512, 683), VIRIDIS))
    assert LeffaBodyMap.execute(odd, PARULA, "auto", image=person)[0].shape == person.shape
    with pytest.raises(ValueError, match="is 384 x 512 pixels, but image is 512 x 512, which is another shape"):
        LeffaBodyMap.execute(picture(rendered(labels, PARULA)), PARTS, "auto", image=torch.zeros(1, 512, 512, 3))


def test_batches_and_odd_inputs() -> None:
    two = [bodies.parts(seed) for seed in (0, 1)]
    mixed = picture(rendered(two[0], PARULA), rendered(two[1], VIRIDIS))
    want = picture(*(drawn(labels, PARTS) for labels in two))
    assert torch.equal(LeffaBodyMap.execute(mixed, PARTS, "auto")[0], want)
    alpha = torch.cat([mixed, torch.zeros(2, 512, 384, 1)], dim=-1)
    assert torch.equal(LeffaBodyMap.execute(alpha.half(), PARTS, "auto")[0], want)
    one_channel = LeffaBodyMap.execute(want[..., :1], PARULA, "auto")[0]
    assert torch.equal(one_channel, picture(*(rendered(labels, PARULA) for labels in two)))


def test_vui_has_to_be_said() -> None:
    labels = bodies.parts(2)
    u, v = bodies.uv(labels)
    pixels = numpy.stack([v, u, labels], axis=-1)
    assert torch.equal(LeffaBodyMap.execute(picture(pixels), UVI, VUI)[0], picture(drawn(labels, UVI)))


def test_what_is_missing_is_told(loaded: dict[str, Any]) -> None:
    given = picture(drawn(bodies.parts(0), PARULA))
    with pytest.raises(ValueError, match="none is connected"):
        LeffaBodyMap.execute(given, AS_MODEL, "auto")
    with pytest.raises(ValueError, match=r"has the number 2.. in the channel that holds the 24 parts"):
        LeffaBodyMap.execute(given, PARTS, UVI)
    with pytest.raises(ValueError, match=r"densepose is 384 x 512 pixels, but image is 96 x 128.*Leffa Body Map"):
        person = torch.rand(1, 128, 96, 3)
        LeffaTryOn.execute(
            loaded["virtual_tryon"], AveragingVAE(), person, person, given, half_mask(8, 8), "once", 1, True
        )
