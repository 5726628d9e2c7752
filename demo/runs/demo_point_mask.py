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

Point = tuple[int, int]
SHOWN = "Similarity", "Mask of the subject"  # titles of nodes
RADIUS, ENLARGED = 10, 2  # of the marks, in pixels of the enlarged picture
# On the two shirts
POINTS: dict[str, Point] = {"positive_coords": (33, 92), "negative_coords": (95, 92)}
# Okabe and Ito's blue and vermillion, which the colour-blind tell apart.
COLOURS = {"positive_coords": "#0072B2", "negative_coords": "#D55E00"}


def run(host: WorldHost, folder: Path) -> Path:
    """Runs the workflow and returns the path of a sheet with the points, the heat map and the mask."""
    started = time.monotonic()
    picture = host.put_picture("two_cats", together(CAT, SAME_CAT))
    workflow = pointed(load_workflow("point_mask"), picture, *POINTS.values(), radius=2)
    outputs = host.run(workflow)["outputs"]
    ids = {node["_meta"]["title"]: name for name, node in workflow.items()}
    cells = [("+ subject, - look-alike", with_points(host.input(picture), folder / "point_mask_points.png"))]
    cells += [(title.lower(), host.images({"outputs": {ids[title]: outputs[ids[title]]}})[0]) for title in SHOWN]
    sheet = folder / "point_mask_contact_sheet.png"
    contact_sheet([cells]).save(sheet)
    print(f"demo: PointMask done in {time.monotonic() - started:.1f} s", flush=True)
    return sheet


def pointed(
    workflow: dict[str, Any], picture: str, positive: Point, negative: Point | None, **settings: Any
) -> dict[str, Any]:
    """The workflow with a picture of two look-alikes, and a point on the one and perhaps on the other."""
    inputs(workflow, "LoadImage")["image"] = picture
    for name, point in zip(POINTS, (positive, negative), strict=True):
        said = [] if point is None else [dict(zip("xy", point, strict=True))]
        inputs(workflow, "PointMask")[name] = json.dumps(said)
    inputs(workflow, "PointMask").update(feather=0, **settings)
    return workflow


def with_points(picture: Path, target: Path) -> Path:
    """Draws the points on the picture as the editor does: a round plus on the subject, a square minus to leave out."""
    with Image.open(picture) as shown:
        size = ENLARGED * shown.width, ENLARGED * shown.height
        canvas = shown.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(canvas)
    for name, point in POINTS.items():
        x, y = (ENLARGED * value for value in point)
        shape = draw.ellipse if name == "positive_coords" else draw.rectangle
        shape((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), COLOURS[name], "white", 2)
        draw.line((x - RADIUS / 2, y, x + RADIUS / 2, y), "white", 3)
        if name == "positive_coords":
            draw.line((x, y - RADIUS / 2, x, y + RADIUS / 2), "white", 3)
    canvas.save(target)
    return target
