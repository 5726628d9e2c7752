"""Data of Leffa: the layouts of VITON-HD, DressCode and DeepFashion, and a list of one's own, as records."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refattention.core.leffa import masks
from refattention.core.leffa import parsing as maps

from ..config import Config, ConfigError
from .common import one_of, read_jsonl

VITON_HD, DRESS_CODE, PAIRS, JSONL = "viton_hd", "dress_code", "pairs", "jsonl"
TRY_ON, POSE_TRANSFER = "try_on", "pose_transfer"
# What the keypoints of the data sets are pixels of
KEYPOINT_CANVAS = {"canvas_width": 384, "canvas_height": 512}
VITON_CANVAS = {"canvas_width": 768, "canvas_height": 1024}


@dataclass(frozen=True)
class Data:
    """`[data]`.

    Attributes:
        root: folder of the data set.
        layout: viton_hd, dress_code, pairs (DeepFashion: a table of pictures "from" and "to") or jsonl.
        file: of the pairs or the JSONL, in the root; viton_hd and dress_code have theirs by custom.
        categories: of dress_code.
        rule: how masks are made where the data set has none: clean, viton_hd or dress_code.
        densepose: folder of the body maps in the root.
        body: kind of body map to train with, whatever kind the files are: Parula, part numbers or UVI; empty = that of
            the authors' checkpoint for the layout and task.
        images: folder of the pictures in the root, of pairs.
    """

    root: str
    layout: str = JSONL
    file: str = ""
    categories: tuple[str, ...] = ("upper_body", "lower_body", "dresses")
    rule: str = "clean"
    densepose: str = ""
    body: str = ""
    images: str = "images"


@dataclass(frozen=True)
class Record:
    """A person in what is worn; the fields of a JSONL's lines. Files are named from the root.

    Attributes:
        person: the picture to be learnt.
        reference: the garment by itself, or the same person in another pose.
        densepose: body map of the person, of the same size.
        mask: what is painted, white; or
        parsing, keypoints: what it is made of, an ATR or LIP map and an OpenPose frame.
        labels: whose numbers the parsing holds, ATR, LIP or auto.
        garment_type: what is worn: upper_body, lower_body or dresses.
    """

    person: str
    reference: str
    densepose: str
    mask: str = ""
    parsing: str = ""
    keypoints: str = ""
    labels: str = maps.AUTO
    garment_type: str = masks.UPPER_BODY


def frame_of(path: Path) -> dict[str, Any]:
    """An OpenPose frame, as data sets have it or as DressCode's own points."""
    frame: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "keypoints" in frame:
        points = [number for x, y, *_ in frame["keypoints"] for number in (x, y, float(x > 0 and y > 0))]
        return {"people": [{"pose_keypoints_2d": points}], **KEYPOINT_CANVAS}
    # Frames of VITON-HD do not say what their numbers are pixels of.
    return {**VITON_CANVAS, **frame}


def records_of(config: Config, root: Path, task: str) -> list[Record]:
    """The records of a data set in one of the known layouts.

    Raises:
        ConfigError: the layout is unknown, or its list cannot be read.
    """
    data: Data = config.data
    layout = one_of(data.layout, (VITON_HD, DRESS_CODE, PAIRS, JSONL), "[data] layout")
    if layout == JSONL:
        return read_jsonl(config, f"{data.root}/{data.file or 'train.jsonl'}", Record)
    if layout == PAIRS:
        return _pairs(root, data)
    if task != TRY_ON:
        raise ConfigError(f"[data] layout {layout} has no pairs of poses. Use pairs or jsonl for pose_transfer.")
    return _viton_hd(root, data) if layout == VITON_HD else _dress_code(root, data)


def _viton_hd(root: Path, data: Data) -> list[Record]:
    """`image/`, `cloth/`, `image-densepose/` and `agnostic-mask/`, or `image-parse-v3/` and `openpose_json/`."""
    listed = root / (data.file or "../train_pairs.txt")
    names = [words[0] for words in _words(listed)] if listed.exists() or data.file else _names(root / "image")
    has_masks = (root / "agnostic-mask").is_dir()
    records = []
    for name in names:
        stem = Path(name).stem
        made = {"mask": f"agnostic-mask/{stem}_mask.png"} if has_masks else {
            "parsing": f"image-parse-v3/{stem}.png",
            "keypoints": f"openpose_json/{stem}_keypoints.json",
            "labels": maps.LIP,
        }  # fmt: skip
        # A person is learnt in what it wears, whatever the list would put on it.
        body = f"{data.densepose or 'image-densepose'}/{stem}"
        suffix = ".jpg" if (root / f"{body}.jpg").exists() else ".png"
        records.append(Record(f"image/{name}", f"cloth/{name}", f"{body}{suffix}", **made))
    return records


def _dress_code(root: Path, data: Data) -> list[Record]:
    """For each category `images/` (…_0 the person, …_1 the garment), `dense/`, `label_maps/` and `keypoints/`."""
    records = []
    for category in data.categories:
        folder = root / category
        listed = folder / (data.file or "train_pairs.txt")
        people = [words[0] for words in _words(listed)] if listed.exists() or data.file else [
            name for name in _names(folder / "images") if Path(name).stem.endswith("_0")
        ]  # fmt: skip
        for name in people:
            stem = Path(name).stem.removesuffix("_0")
            records.append(
                Record(
                    f"{category}/images/{name}",
                    f"{category}/images/{stem}_1.jpg",
                    f"{category}/{data.densepose or 'dense'}/{stem}_5.png",
                    parsing=f"{category}/label_maps/{stem}_4.png",
                    keypoints=f"{category}/keypoints/{stem}_2.json",
                    garment_type=category,
                )
            )
    return records


def _pairs(root: Path, data: Data) -> list[Record]:
    """A CSV of "from" and "to": two pictures of a person, of which the second is learnt."""
    path = root / (data.file or "fasion-resize-pairs-train.csv")
    body = data.densepose or "densepose"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"[data] file: {path} cannot be read: {error}.") from error
    if rows and not {"from", "to"} <= rows[0].keys():
        raise ConfigError(f"{path} has the columns {', '.join(rows[0])}, but needs from and to.")
    return [
        Record(f"{data.images}/{row['to']}", f"{data.images}/{row['from']}", f"{body}/{Path(row['to']).stem}.png")
        for row in rows
    ]


def _words(path: Path) -> list[list[str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"[data] file: {path} cannot be read: {error}.") from error
    return [line.split() for line in lines if line.strip()]


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise ConfigError(f"There is no folder {folder}. Set [data] root and layout to those of the data set.")
    return sorted(path.name for path in folder.iterdir() if path.is_file())
