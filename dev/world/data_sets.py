"""The world's pictures as folders for `tools/train.py`: people in shirts, and pairs of pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from refattention_demo.world import captions, draw, record, truth, worn
from refattention_demo.world.record import Record, Shirt

from .config import STATE

FOLDER = STATE / "data"
Line = dict[str, Any]
Pixels = NDArray[np.uint8]
# What a pair's text leaves to the reference: looks of the subject, or the style
SUBJECT_UNSAID = captions.Named(body=0, eyes=0, shirt=0, pattern=0, logo=0, pose=1, scene=1, style=1)
STYLE_UNSAID = captions.Named(style=0)
LOGO_SHARE = 0.7


def write(name: str, count: int) -> Path:
    """The folder of a data set of that many records, written if it is not there."""
    folder = FOLDER / f"{name}_{count}"
    listed = folder / "train.jsonl"
    if listed.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    lines = [MAKERS[name](folder, f"{number:05}", generator(name, number)) for number in range(count)]
    unfinished = listed.with_suffix(".part")
    unfinished.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    unfinished.replace(listed)
    return folder


def person(folder: Path, name: str, rng: Generator) -> Line:
    """Somebody in a shirt, body map and parsing, and that shirt laid flat."""
    return _wearing(folder, name, replace(with_shirt(record.random_record(rng), rng), style="flat"))


def quilted(folder: Path, name: str, rng: Generator) -> Line:
    """The same with a shirt of which every place looks different."""
    shown = replace(record.random_record(rng), style="flat")
    return _wearing(folder, name, record.dressed(shown, quilt(rng)))


def posed(folder: Path, name: str, rng: Generator) -> Line:
    """Somebody in a pose with a body map of it, and the same in another one; both in the same place."""
    shown, other = poses(with_shirt(record.random_record(rng), rng), rng)
    pictures = {"person": draw.picture(shown), "densepose": truth.densepose(shown), "reference": draw.picture(other)}
    return _by_role(folder, name, pictures)


def poses(shown: Record, rng: Generator) -> tuple[Record, Record]:
    """The picture in the flat style, and the same with the figure in another pose."""
    shown = replace(shown, style="flat")
    return shown, replace(shown, figures=record.another_view(shown, rng).figures)


def quilt(rng: Generator) -> Shirt:
    """A shirt of which every place looks different."""
    return Shirt("white", "white", quilt=int(rng.integers(1 << 30)))


def _wearing(folder: Path, name: str, shown: Record) -> Line:
    files = worn.maps(shown) | {"reference": draw.flat_garment(shown.figures[0].character.shirt)}
    return _by_role(folder, name, files)


def _by_role(folder: Path, name: str, pictures: dict[str, Pixels]) -> Line:
    return {role: _saved(folder / f"{name}_{role}.png", pixels) for role, pixels in pictures.items()}


def pair(folder: Path, name: str, rng: Generator) -> Line:
    """By turns: two pictures of one style, two of one subject, a picture by itself."""
    target = record.random_record(rng)
    kind = ("style", "subject", "reconstruction")[int(name) % 3]
    line = {"kind": kind, "target": _saved(folder / f"{name}_target.png", draw.picture(target))}
    if kind == "reconstruction":
        return line
    if kind == "style":
        reference, unsaid = record.another_subject(target, rng), STYLE_UNSAID
    else:
        reference, unsaid = record.another_view(target, rng), SUBJECT_UNSAID
        reference = replace(reference, style=str(rng.choice(record.STYLES)))
    line["reference"] = _saved(folder / f"{name}_reference.png", draw.picture(reference))
    return line | {"prompt": captions.caption(target, rng, unsaid)}


def part(folder: Path, name: str, rng: Generator) -> Line:
    """By turns: a figure that another picture shows in another pose, and a picture by itself."""
    shown, whole = completed(rng), np.ones((draw.SIZE, draw.SIZE), bool)
    inside = whole if is_by_itself(int(name)) else truth.subject(shown)
    line: Line = {
        "image": _saved(folder / f"{name}_image.png", draw.picture(shown)),
        "mask": _saved(folder / f"{name}_mask.png", np.where(inside, 255, 0).astype(np.uint8)),
    }
    if is_by_itself(int(name)):
        return line
    other = record.another_view(shown, rng)
    # The truth has the middle of the first pixel at 0.5, the trainer at 0.
    np.save(folder / f"{name}_places.npy", (truth.flow(shown, other) - 0.5).astype(np.float16))
    reference = _saved(folder / f"{name}_reference.png", draw.picture(other))
    return line | {"reference": reference, "correspondence": f"{name}_places.npy"}


def completed(rng: Generator) -> Record:
    """The picture that is to be completed, drawn before all else of a `part`."""
    return replace(with_shirt(record.random_record(rng), rng), style="flat")


def is_by_itself(number: int) -> bool:
    """Whether the `part` of that number has no other picture."""
    return number % 2 == 1


def generator(name: str, number: int) -> Generator:
    """What a record of a data set is drawn by."""
    return np.random.default_rng([number, len(name)])


def with_shirt(shown: Record, rng: Generator) -> Record:
    """The same picture with a shirt that has a logo more often than not."""
    body = shown.figures[0].character.body
    wants_logo = rng.random() < LOGO_SHARE
    shirt = record.random_shirt(rng)
    while shirt.colour == body or (shirt.logo != "none") != wants_logo:
        shirt = record.random_shirt(rng)
    return record.dressed(shown, shirt)


def _saved(path: Path, pixels: Pixels) -> str:
    Image.fromarray(pixels).save(path)
    return path.name


MAKERS: dict[str, Callable[[Path, str, Generator], Line]] = {
    "leffa": person,
    "quilts": quilted,
    "poses": posed,
    "deadiff": pair,
    "refine": part,
}
