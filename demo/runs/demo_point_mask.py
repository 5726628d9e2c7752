"""The point mask workflow: two clicks on two look-alikes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from world_host import WorldHost, inputs

from demo_cast import CAT, SAME_CAT, together
from demo_host import load_workflow
from demo_sheet import contact_sheet

RADIUS = 4
# On the two shirts
POINTS = {"positive_coords": (33, 92), "negative_coords": (95, 92)}
# Okabe and Ito's blue and vermillion, which the colour-blind tell apart.
COLOURS = {"positive_coords": "#0072B2", "negative_coords": "#D55E00"}


def run(host: WorldHost, folder: Path) -> Path:
    """Runs the workflow and returns the path of a sheet with the points, the heat map and what came of them."""
    started = time.monotonic()
    workflow = pointed(load_workflow("point_mask"), host.put_picture("two_cats", together(CAT, SAME_CAT)))
    entry = host.run(workflow)
    titles = {workflow[name]["_meta"]["title"]: host.images({"outputs": {name: output}}) for name, output in
              entry["outputs"].items()}  # fmt: skip
    cells = [("points", with_points(host.base / "input" / "two_cats.png", folder / "point_mask_points.png"))]
    cells += [(title.lower(), files[0]) for title, files in titles.items() if files]
    sheet = folder / "point_mask_contact_sheet.png"
    contact_sheet([cells]).save(sheet)
    print(f"demo: PointMask done in {time.monotonic() - started:.1f} s", flush=True)
    return sheet


def pointed(workflow: dict[str, Any], picture: str) -> dict[str, Any]:
    """The workflow with a picture of two look-alikes, and a point on each."""
    inputs(workflow, "LoadImage")["image"] = picture
    points = {name: json.dumps([{"x": x, "y": y}]) for name, (x, y) in POINTS.items()}
    inputs(workflow, "PointMask").update(points, feather=0, radius=2)
    return workflow


def with_points(picture: Path, target: Path) -> Path:
    """Draws the points on the picture."""
    with Image.open(picture) as shown:
        canvas = shown.convert("RGB")
    draw = ImageDraw.Draw(canvas)
    for name, point in POINTS.items():
        draw.circle(point, RADIUS, COLOURS[name], "white", 1)
    canvas.save(target)
    return target
