"""Pictures of the templates as the editor shows them, for the help pages.

Run it in the development environment: `.venv/bin/python dev/graph_pictures.py [TEMPLATE ...]`.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "demo" / "runs")]

from frontend import BROWSER_ARGS, Frontend
from PIL import Image
from playwright.sync_api import sync_playwright
from setup_browser import find_browser, missing_reason

from demo_host import demo_host

TARGET = ROOT / "web" / "docs" / "pictures"
WIDTH, HEIGHT = 1100, 1400
# The editor's bars lie over the canvas.
LEFT, TOP, BOTTOM = 60, 90, 60
ZOOM_TO_GRAPH = """
([width, height, left, top]) => {
    const { graph, canvas } = window.app;
    const boxes = [...graph.nodes, ...graph.groups].map((each) => each.boundingRect ?? each.bounding ?? each._bounding);
    const x = Math.min(...boxes.map((box) => box[0])), y = Math.min(...boxes.map((box) => box[1]));
    const right = Math.max(...boxes.map((box) => box[0] + box[2]));
    const bottom = Math.max(...boxes.map((box) => box[1] + box[3]));
    const margin = 20;
    const scale = Math.min(1, width / (right - x + 2 * margin), height / (bottom - y + 2 * margin));
    canvas.ds.scale = scale;
    canvas.ds.offset = [left / scale - x + margin, top / scale - y + margin];
    canvas.setDirty(true, true);
    return [(right - x + 2 * margin) * scale, (bottom - y + 2 * margin) * scale];
}
"""


def take(frontend: Frontend, template: Path) -> Image.Image:
    """The graph of a template, cut out of the page."""
    frontend.new_graph()
    frontend.open(json.loads(template.read_text(encoding="utf-8")))
    page = frontend.page
    assert page.viewport_size is not None
    room = (page.viewport_size["width"] - LEFT, page.viewport_size["height"] - TOP - BOTTOM)
    width, height = frontend.evaluate(ZOOM_TO_GRAPH, [*room, LEFT, TOP])
    page.wait_for_timeout(1500)
    clip = {"x": LEFT, "y": TOP, "width": min(width, room[0]), "height": min(height, room[1])}
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def put_placeholders(models: Path, templates: list[Path]) -> None:
    """Empty files where a template names a model that the demo has not: the editor would mark its node as broken."""
    for template in templates:
        for node in json.loads(template.read_text(encoding="utf-8"))["nodes"]:
            named = [f"{model['directory']}/{model['name']}" for model in node["properties"].get("models", [])]
            if node["type"] in ("P3SLoad", "RefDropLoad", "RefineByAlignLoad"):
                named.append(f"model_patches/{node['widgets_values'][0]}")
            for name in named:
                (models / name).parent.mkdir(parents=True, exist_ok=True)
                (models / name).touch()


def main(names: list[str]) -> int:
    """Writes `graph_<template>.jpg` for all templates that a help page shows, or for those that are named."""
    program = find_browser()
    if program is None:
        print(missing_reason(), file=sys.stderr)
        return 1
    shown = "".join(page.read_text(encoding="utf-8") for page in TARGET.parent.glob("*.md"))
    templates = [
        path
        for path in sorted((ROOT / "workflows").glob("*.json"))
        if (path.stem in names if names else f"graph_{path.stem}.jpg" in shown)
    ]
    server = demo_host()
    put_placeholders(server.base / "models", templates)
    with server as host, sync_playwright() as playwright:
        host.post("/settings", {"Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False})
        browser = playwright.chromium.launch(executable_path=program, args=BROWSER_ARGS)
        frontend = Frontend(browser, host, "classic")
        frontend.page.set_viewport_size({"width": 1900, "height": 2000})
        for template in templates:
            picture = take(frontend, template)
            picture.thumbnail((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
            path = TARGET / f"graph_{template.stem}.jpg"
            picture.save(path, quality=80, optimize=True)
            print(f"{path.relative_to(ROOT)}: {picture.width} x {picture.height}, {path.stat().st_size // 1024} KiB")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
