"""The panel of AttentionProbe in both renderers: what it shows is what the node stored."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from frontend import EditorDriver, Frontend, points
from PIL import Image
from point_scene import PHOTO_SIZE, near

from host import ROOT

pytestmark = pytest.mark.e2e
NODES: dict[str, Any] = {
    "checkpoint": ["CheckpointLoaderSimple", 20, 60, {"ckpt_name": "v1-5-pruned-emaonly-fp16.safetensors"}, None],
    "prompt": ["CLIPTextEncode", 20, 220, {"text": "cat"}, [300, 100]],
    "image": ["LoadImage", 20, 380, {"image": "refattention_photo.jpg"}, [280, 280]],
    "reference": ["LoadImage", 20, 700, {"image": "narrow.png"}, [280, 280]],
    "probe": [
        "AttentionProbe",
        400,
        60,
        {"working_size": 128, "layers": "output.11", "positive_coords": '[{"x": 150, "y": 150}]'},
        [560, 560],
    ],
}
LINKS = [
    ["checkpoint", 1, "prompt", "clip"],
    ["checkpoint", 0, "probe", "model"],
    ["checkpoint", 2, "probe", "vae"],
    ["prompt", 0, "probe", "positive"],
    ["image", 0, "probe", "image"],
    ["reference", 0, "probe", "reference_image"],
]
POINT, OTHER = (150, 150), (400, 40)
HEAT = """
(canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return Array.from(data).reduce((sum, value, index) => (sum + value * (index % 8191)) % 1000003, 0);
}
"""


class Probe:
    """A photograph and a narrow picture connected to an AttentionProbe."""

    def __init__(self, frontend: Frontend) -> None:
        self.frontend = frontend
        self.ids = frontend.add(NODES, LINKS)
        self.node = self.ids["probe"]
        self.panel = self.find()

    def find(self) -> EditorDriver:
        return EditorDriver(self.frontend, 0, PHOTO_SIZE, "refattention-attention-probe", ".stage.picture").wait_ready()

    def queue(self) -> None:
        self.frontend.queue()
        self.panel.wait_status("Looks most at")

    def move(self, x: float, y: float) -> None:
        self.frontend.page.mouse.move(*self.panel.place(x, y))
        self.panel.root.locator(".where").get_by_text(re.compile(f"^{x}, {y}$")).wait_for()

    def leave(self) -> None:
        self.frontend.page.mouse.move(5, 300)
        self.panel.root.locator(".where").get_by_text(", ".join(map(str, POINT)), exact=True).wait_for()

    @property
    def status(self) -> str:
        return self.panel.root.locator(".status").inner_text()

    @property
    def heat(self) -> int:
        """A number that tells pictures of the reference apart."""
        self.frontend.page.wait_for_timeout(100)
        number: int = self.panel.root.locator(".reference canvas").evaluate(HEAT)
        return number

    def message(self) -> dict[str, Any]:
        """What the node told in the last run."""
        script = "(id) => window.app.nodeOutputs[id].refattention_probe[0]"
        message: dict[str, Any] = self.frontend.evaluate(script, self.node)
        return message

    def words(self, place: tuple[int, int] | None) -> str:
        """What the status line has to say of a place, or of the masked spot, from the stored maps."""
        message = self.message()
        grid, cells, reference = message["grid"], message["reference_grid"], message["reference_size"]
        with Image.open(self.frontend.host.base / "temp" / message["maps"]["filename"]) as picture:
            brightness = np.asarray(picture)[..., 0]
        column, row = (
            (0, grid["height"])
            if place is None
            else (place[0] * grid["width"] // PHOTO_SIZE[0], place[1] * grid["height"] // PHOTO_SIZE[1])
        )
        height, width = cells["height"], cells["width"]
        tile = brightness[row * height : (row + 1) * height, column * width : (column + 1) * width]
        times = np.expm1(tile.max() / 255 * np.log1p(message["most"]))
        y, x = np.unravel_index(tile.argmax(), tile.shape)
        across, down = (reference[side] / cells[side] for side in ("width", "height"))
        place_x, place_y = int((x + 0.5) * across), int((y + 0.5) * down)
        return f"Looks most at {place_x}, {place_y}: {times:.{1 if times < 10 else 0}f} times even attention."


@pytest.fixture
def probe(frontend: Frontend) -> Probe:
    return Probe(frontend)


def test_heat_follows_the_pointer_and_comes_back(probe: Probe) -> None:
    assert probe.status == "Queue once to fill."
    probe.queue()
    probe.leave()
    chosen = probe.heat
    assert probe.status == probe.words(POINT)
    probe.move(*OTHER)
    there = probe.heat
    assert there != chosen and probe.status == probe.words(OTHER)
    probe.frontend.screenshot(ROOT / "out" / "web" / f"probe_{probe.frontend.renderer}.png")
    probe.leave()
    assert probe.heat == chosen and probe.status == probe.words(POINT)
    for key in ("ArrowRight", "Shift+ArrowUp"):
        probe.panel.press(key)
    # 451 / 32 pixels to the right, four times as many up.
    probe.panel.root.locator(".where").get_by_text("164, 93", exact=True).wait_for()
    assert probe.heat not in (chosen, there)
    probe.panel.press("Escape")
    assert probe.heat == chosen


def test_click_and_enter_choose_the_spot_and_nothing_else_is_stored(probe: Probe) -> None:
    frontend, panel = probe.frontend, probe.panel
    panel.click(*OTHER)
    assert near(points(frontend.widget(probe.node, "positive_coords")), [OTHER])
    frontend.page.mouse.move(5, 300)
    panel.press("ArrowLeft", "Enter")
    (chosen,) = points(frontend.widget(probe.node, "positive_coords"))
    assert abs(chosen[0] - (OTHER[0] - 451 / 32)) <= 2 and abs(chosen[1] - OTHER[1]) <= 1
    graph = frontend.graph()
    assert "attention_probe" not in json.dumps(graph)
    assert list(frontend.prompt()[str(probe.node)]["inputs"]).count("positive_coords") == 1
    frontend.new_graph()
    frontend.open(graph)
    probe.find().wait_status("Queue once to fill.")
    assert points(frontend.widget(probe.node, "positive_coords")) == [chosen]
    assert frontend.widget(probe.node, "working_size") == 128


def test_after_the_page_is_loaded_again_a_run_fills_the_panel(probe: Probe) -> None:
    """The host has the result still and computes nothing."""
    frontend = probe.frontend
    probe.queue()
    probe.leave()
    before = probe.status
    frontend.page.wait_for_timeout(1000)  # the frontend keeps open workflows after a pause
    frontend.load()
    frontend.page.wait_for_function("() => window.app.graph.nodes.length === 5")
    probe.panel = probe.find()
    probe.panel.wait_status("Queue once to fill.")
    logged = len(frontend.host.log())
    probe.queue()
    assert "Requested to load" not in frontend.host.log()[logged:]
    assert probe.status == before == probe.words(POINT)


def test_other_picture_asks_for_a_run(probe: Probe) -> None:
    probe.queue()
    probe.frontend.set_widget(probe.ids["reference"], "image", "refattention_coins.jpg")
    probe.panel.wait_status("Other pictures are connected now: queue once to fill.")


def test_masked_spot_is_what_the_panel_comes_back_to(probe: Probe) -> None:
    nodes = {"mask": ["SolidMask", 700, 700, {"value": 1.0}, None]}
    probe.frontend.add(nodes, [["mask", 0, probe.node, "mask"]])
    probe.queue()
    probe.leave()
    assert probe.status == probe.words(None)
    probe.move(*OTHER)
    assert probe.status == probe.words(OTHER) != probe.words(None)


def test_panel_works_inside_a_subgraph(probe: Probe) -> None:
    frontend = probe.frontend
    frontend.enter_subgraph(probe.node)
    panel = probe.panel = probe.find()
    probe.queue()
    before = probe.status
    frontend.page.mouse.move(*panel.place(*OTHER))
    panel.root.locator(".where").get_by_text("400, 40").wait_for()
    assert probe.status != before
    frontend.evaluate("() => window.app.canvas.setGraph(window.app.rootGraph)")
