"""The point mask workflow: two clicks on two look-alikes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from demo_host import PHOTOS, load_workflow
from demo_sheet import contact_sheet
from host import HeadlessHost

CELL = (450, 180)
RADIUS = 14
# Okabe and Ito's blue and vermillion, which the colour-blind tell apart.
COLOURS = {"positive_coords": "#0072B2", "negative_coords": "#D55E00"}


def run(host: HeadlessHost, folder: Path) -> Path:
    """Runs the workflow and returns the path of a sheet with the points, the heat map and what came of them."""
    started = time.monotonic()
    workflow = load_workflow("point_mask")
    entry = host.run(workflow)
    titles = {workflow[name]["_meta"]["title"]: host.images({"outputs": {name: output}}) for name, output in
              entry["outputs"].items()}  # fmt: skip
    cells = [("points", _with_points(workflow, folder / "point_mask_points.png"))]
    cells += [(title.lower(), files[0]) for title, files in titles.items() if files]
    sheet = folder / "point_mask_contact_sheet.png"
    contact_sheet(cells, CELL).save(sheet)
    print(f"demo: PointMask done in {time.monotonic() - started:.1f} s", flush=True)
    return sheet


def _with_points(workflow: dict[str, Any], target: Path) -> Path:
    """Draws the workflow's points on its picture."""
    by_class = {node["class_type"]: node["inputs"] for node in workflow.values()}
    with Image.open(PHOTOS / by_class["LoadImage"]["image"]) as photo:
        picture = photo.convert("RGB")
    draw = ImageDraw.Draw(picture)
    for name, colour in COLOURS.items():
        for point in json.loads(by_class["PointMask"][name]):
            draw.circle((point["x"], point["y"]), RADIUS, colour, "white", 4)
    picture.save(target)
    return target
