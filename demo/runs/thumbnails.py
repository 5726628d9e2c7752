"""Draws the thumbnails of templates anew: `python demo/runs/thumbnails.py`, after `make demo`.

A thumbnail is what goes in and what comes out, side by side, on the trained world: cut from a sheet of the demo, or
from a run of the template. Templates of models that the demo lacks show what their method does on those it has, or stay
as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[2] / "dev"))

from world_host import SMALL, WorldHost, draw

import demo_sheet
from demo_cast import BEAR, CAT, RABBIT, STANDING, alone
from demo_host import load_workflow
from host import ROOT

if TYPE_CHECKING:
    from refattention_demo.world.record import Record

SIDE, GAP = 256, 6
FLAT = ", flat cartoon"
OF_CAT, OF_RABBIT = (
    "an orange cat wearing a blue striped shirt in a room",
    "a white rabbit with glasses wearing a green shirt",
)
WAVING_CAT = "a cat waving on the beach" + FLAT


@dataclass(frozen=True)
class Thumbnail:
    """How a template is run.

    Attributes:
        shown: title of a LoadImage node -> what it loads.
        said: title of a text node -> its prompt; all others are empty.
        changed: class of nodes -> inputs.
    """

    shown: dict[str, Record] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    changed: dict[str, dict[str, Any]] = field(default_factory=dict)


KEPT = Thumbnail(
    {"Reference picture": alone(CAT)}, {"Prompt of the reference": OF_CAT + FLAT, "Positive prompt": WAVING_CAT}
)
SCENES = {
    "1: who it is about": OF_CAT + FLAT,
    "2: scene": WAVING_CAT,
    "3: scene": "a cat cheering in the forest" + FLAT,
    "4: scene": "a cat pointing in the snow" + FLAT,
}
NEXT = {"Prompt of the recorded picture": OF_CAT + FLAT, "Prompt of the next picture": WAVING_CAT}
STRONGER = {"RefDropApply": {"strength": 0.5}}
BEAR_PROMPT = {"Positive prompt": "a bear waving wearing a red shirt in the forest"}
STYLES = [alone(RABBIT, STANDING, "beach", style) for style in ("watercolor", "ink")]
THUMBNAILS = {
    "refdrop": Thumbnail(KEPT.shown, KEPT.said, STRONGER),
    "refdrop_record": Thumbnail({}, NEXT, STRONGER),
    "refdrop_story": Thumbnail({}, SCENES, STRONGER),
    "refdrop_diversity": Thumbnail({}, {"Positive prompt": "a rabbit in a room" + FLAT}),
    "refdrop_keep": Thumbnail({}, {"Prompt of the character": OF_CAT + FLAT}),
    "refdrop_blend": Thumbnail(
        {"First subject": alone(CAT), "Second subject": alone(BEAR)}, {"Positive prompt": "a rabbit in the snow" + FLAT}
    ),
    "refdrop_two_subjects": Thumbnail(
        {"Left subject": alone(CAT), "Right subject": alone(RABBIT)},
        {"Positive prompt": "a cat and a rabbit in the snow" + FLAT},
        STRONGER,
    ),
    "deadiff": Thumbnail({"Style reference": STYLES[0]}, BEAR_PROMPT),
    "deadiff_official_loop": Thumbnail({"Style reference": STYLES[1]}, BEAR_PROMPT),
    "deadiff_two_styles": Thumbnail({"First style": STYLES[0], "Second style": STYLES[1]}, BEAR_PROMPT),
    "deadiff_two_regions": Thumbnail(
        {"Style of the left half": STYLES[0], "Style of the right half": STYLES[1]}, BEAR_PROMPT
    ),
}
# Template -> the demo's sheet, and rows and columns of its cells
CUT: dict[str, tuple[str, list[tuple[int, int]]]] = {
    "p3s": ("p3s", [(0, 0), (0, 2)]),
    "p3s_train": ("p3s", [(0, 0), (0, 1), (0, 3)]),
    "p3s_trained": ("p3s", [(0, 0), (0, 3)]),
    "point_mask": ("point_mask", [(0, 0), (0, 1), (0, 2)]),
    "leffa_tryon": ("leffa", [(0, 0), (0, 1), (0, 2)]),
    "refine_by_align": ("align", [(0, 0), (0, 1), (0, 4)]),
    "refine_two_steps": ("align", [(0, 0), (0, 1), (0, 2), (0, 4)]),
    "refine_trained": ("align", [(0, 0), (0, 1), (0, 5)]),
    "refdrop_flux": ("refdrop", [(0, 0), (0, 3)]),
    "refine_flux_kontext": ("align", [(0, 0), (0, 1), (0, 4)]),
    "refine_qwen_image_edit": ("align", [(0, 0), (0, 1), (0, 4)]),
}


def main() -> None:
    """Writes all of them, or those named on the command line."""
    with WorldHost() as host:
        for name in sys.argv[1:] or [*THUMBNAILS, *CUT]:
            pictures = [*cells(*CUT[name])] if name in CUT else taken(host, name, THUMBNAILS[name])
            target = ROOT / "workflows" / f"{name}.jpg"
            side_by_side(pictures).save(target, quality=88, optimize=True)
            print(target)


def cells(sheet: str, places: list[tuple[int, int]]) -> Iterator[Image.Image]:
    """Pictures out of a contact sheet of the demo."""
    with Image.open(ROOT / "out" / "demo" / f"{sheet}_contact_sheet.png") as whole:
        for row, column in places:
            left, top = demo_sheet.corner(row, column, (demo_sheet.CELL, demo_sheet.CELL))
            yield whole.crop((left, top, left + demo_sheet.CELL, top + demo_sheet.CELL))


def taken(host: WorldHost, name: str, how: Thumbnail) -> list[Image.Image]:
    """The pictures that a template loads and saves, in its order."""
    workflow, loaded = load_workflow(name), list[Path]()
    for node in workflow.values():
        kind, title, inputs = node["class_type"], node["_meta"]["title"], node["inputs"]
        inputs.update(SMALL.get(kind, {}) | how.changed.get(kind, {}))
        if kind == "CLIPTextEncode":
            inputs["text"] = how.said.get(title, "")
        if kind == "SolidMask":
            inputs.update(width=inputs["width"] * draw.SIZE // 512, height=draw.SIZE)
        if kind == "LoadImage":
            inputs["image"] = host.put_picture(f"{name}_{len(loaded)}", how.shown[title])
            loaded.append(host.input(inputs["image"]))
    return [Image.open(path).convert("RGB") for path in loaded + sorted(host.images(host.run(workflow)))]


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """A row on white."""
    row = Image.new("RGB", (len(pictures) * (SIDE + GAP) - GAP, SIDE), "white")
    for number, picture in enumerate(pictures):
        row.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (number * (SIDE + GAP), 0))
    return row


if __name__ == "__main__":
    main()
