"""ComfyUI's frontend in a real browser, driven from Python: builds graphs and uses the point editor in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect

from host import PACK_NAME, HeadlessHost

RENDERERS = {"classic": False, "nodes2": True}
# Root needs the first; the others keep the browser from talking to anybody but the host.
BROWSER_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
READY = "() => window.app?.extensionManager && window.app.graph && window.LiteGraph?.registered_node_types?.PointMask"
# The stage leaves this much room around the picture, see web/js/points/view.js.
MARGIN = 10
MODULES = f"/extensions/{PACK_NAME}/js/points"
ADD_NODES = """
([nodes, links]) => {
    const { app, LiteGraph } = window;
    const made = {};
    for (const [name, [type, x, y, widgets, size]] of Object.entries(nodes)) {
        const node = LiteGraph.createNode(type);
        node.pos = [x, y];
        app.graph.add(node);
        if (size) node.setSize(size);
        for (const [key, value] of Object.entries(widgets)) {
            const widget = node.widgets.find((each) => each.name === key);
            widget.value = value;
            widget.callback?.(value, app.canvas, node);
        }
        made[name] = node;
    }
    const find = (name) => made[name] ?? app.graph.getNodeById(name);
    for (const [from, slot, to, input] of links) {
        find(from).connect(slot, find(to), find(to).inputs.findIndex((each) => each.name === input));
    }
    return Object.fromEntries(Object.entries(made).map(([name, node]) => [name, node.id]));
}
"""
NODE_CENTER = """
(id) => {
    const { app } = window;
    const node = app.canvas.graph.getNodeById(id);
    const box = app.canvas.canvas.getBoundingClientRect();
    const { scale, offset } = app.canvas.ds;
    return [box.left + (node.pos[0] + offset[0] + 60) * scale, box.top + (node.pos[1] + offset[1] - 15) * scale];
}
"""


class Frontend:
    """One page of the frontend with a renderer; `errors` collects what the page complained about."""

    def __init__(self, browser: Browser, host: HeadlessHost, renderer: str) -> None:
        self.host = host
        self.renderer = renderer
        self.errors: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": 1400, "height": 900})
        self.page.set_default_timeout(10_000)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._on_console)
        settings = {
            "Comfy.VueNodes.Enabled": RENDERERS[renderer],
            # Without a graphics card, every picture of the graph is paid by the processor.
            "LiteGraph.Canvas.MaximumFps": 20,
            "Comfy.TutorialCompleted": True,
            "Comfy.Workflow.ShowMissingModelsWarning": False,
            "Comfy.Workflow.WarnBlueprintOverwrite": False,
        }
        host.post("/settings", settings)
        self.load()

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error" and PACK_NAME in (message.location.get("url", "") + message.text):
            self.errors.append(message.text)

    def load(self) -> None:
        """Opens the frontend anew."""
        self.page.goto(self.host.url)
        self.page.wait_for_function(READY, timeout=60_000)

    def evaluate(self, script: str, argument: Any = None) -> Any:
        """The value of a JavaScript expression or function in the page."""
        return self.page.evaluate(script, argument)

    def enter_subgraph(self, node: int) -> None:
        """Makes a subgraph of a node alone, and shows its inside."""
        self.evaluate(
            """(id) => {
                const { canvas } = window.app;
                canvas.deselectAll();
                canvas.select(canvas.graph.getNodeById(id));
                const { node } = canvas.graph.convertToSubgraph(canvas.selectedItems);
                canvas.setGraph(node.subgraph);
                canvas.ds.scale = 1;
                canvas.ds.offset = [300, 100];
            }""",
            node,
        )

    def new_graph(self) -> None:
        """An empty graph at the usual place and zoom, in the only tab."""
        self.evaluate(
            """async () => {
                const { command, workflow } = window.app.extensionManager;
                await command.execute("Comfy.NewBlankWorkflow");
                const others = workflow.openWorkflows.filter((each) => each.path !== workflow.activeWorkflow.path);
                for (const other of others) await workflow.closeWorkflow(other);
                window.app.canvas.ds.scale = 1;
                window.app.canvas.ds.offset = [0, 0];
                window.app.canvas.setDirty(true, true);
            }"""
        )

    def add(self, nodes: Mapping[str, Any], links: list[list[Any]]) -> dict[str, int]:
        """Adds nodes `name: [type, x, y, widget values, size]` and links `[from, slot, to, input]` of names or ids.

        Returns: name -> node id.
        """
        ids: dict[str, int] = self.evaluate(ADD_NODES, [dict(nodes), links])
        self.capture()
        return ids

    def capture(self) -> None:
        """Makes the graph's undo note the graph as it is now."""
        self.evaluate("() => window.app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")

    def graph(self) -> dict[str, Any]:
        """The workflow as it would be saved."""
        graph: dict[str, Any] = self.evaluate("() => JSON.parse(JSON.stringify(window.app.rootGraph.serialize()))")
        return graph

    def prompt(self) -> dict[str, Any]:
        """The workflow in API format, as the page exports it."""
        prompt: dict[str, Any] = self.evaluate("async () => (await window.app.graphToPrompt()).output")
        return prompt

    def open(self, graph: Mapping[str, Any]) -> None:
        """Loads a saved workflow."""
        self.evaluate("(graph) => window.app.loadGraphData(graph)", graph)

    def queue(self) -> None:
        """Runs the workflow from the page and waits until it is done."""
        self.evaluate(
            """() => new Promise((resolve, reject) => {
                const { api } = window.comfyAPI.api;
                const done = ({ detail }) => detail === null && (api.removeEventListener("executing", done), resolve());
                api.addEventListener("executing", done);
                window.app.queuePrompt(0, 1).then((queued) => queued || reject(new Error("not queued")));
            })"""
        )

    def widget(self, node_id: int, name: str) -> Any:
        """The value of a widget of a node in the graph that is shown."""
        script = "([id, name]) => window.app.canvas.graph.getNodeById(id).widgets.find((w) => w.name === name).value"
        return self.evaluate(script, [node_id, name])

    def set_widget(self, node_id: int, name: str, value: Any) -> None:
        """Sets a widget as a text field does."""
        self.evaluate(
            """([id, name, value]) => {
                const widget = window.app.canvas.graph.getNodeById(id).widgets.find((w) => w.name === name);
                widget.value = value;
                widget.callback?.(value);
            }""",
            [node_id, name, value],
        )

    def select(self, node_id: int) -> None:
        """Selects a node and gives the keyboard to the graph."""
        self.evaluate(
            """(id) => {
                const { canvas } = window.app;
                canvas.deselectAll();
                canvas.select(canvas.graph.getNodeById(id));
                document.activeElement?.blur();
                canvas.canvas.focus();
            }""",
            node_id,
        )

    def title_place(self, node_id: int) -> tuple[float, float]:
        """Where a node's title is on the screen."""
        x, y = self.evaluate(NODE_CENTER, node_id)
        return x, y

    def editor(self, index: int = 0, size: tuple[int, int] = (451, 300)) -> EditorDriver:
        """The editor of the graph's first (or a later) PointMask node, with a picture of a size."""
        return EditorDriver(self, index, size)

    def screenshot(self, path: Path) -> None:
        """Writes what the page shows."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.wait_for_timeout(300)
        self.page.screenshot(path=path)


class EditorDriver:
    """A point editor, or another element with such a stage. Places are pixels of the picture, on the fitted view."""

    def __init__(
        self,
        frontend: Frontend,
        index: int,
        size: tuple[int, int],
        tag: str = "refattention-point-editor",
        stage: str = ".stage",
    ) -> None:
        self.frontend = frontend
        self.size = size
        self.root: Locator = frontend.page.locator(tag).nth(index)
        self.stage = self.root.locator(stage)

    def wait_ready(self) -> EditorDriver:
        """Waits until the picture is shown, in the place that the style sheet gives it."""
        self.stage.and_(self.root.locator(":not(.without-picture)")).wait_for()
        expect(self.stage).to_have_css("position", "relative")
        return self

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Screen position of the middle of a pixel."""
        box = self.stage.bounding_box()
        assert box is not None
        width, height = self.size
        # The stage has a border of one pixel, which the graph enlarges like everything else.
        zoom = self.stage.evaluate("(stage) => stage.getBoundingClientRect().width / stage.offsetWidth")
        room = (box["width"] / zoom - 2, box["height"] / zoom - 2)
        scale = min((room[0] - 2 * MARGIN) / width, (room[1] - 2 * MARGIN) / height)
        left, top = (room[0] - width * scale) / 2, (room[1] - height * scale) / 2
        return (
            box["x"] + (1 + left + (x + 0.5) * scale) * zoom,
            box["y"] + (1 + top + (y + 0.5) * scale) * zoom,
        )

    def click(self, x: float, y: float, button: Any = "left", shift: bool = False, count: int = 1) -> None:
        """Presses a mouse button on a pixel."""
        page = self.frontend.page
        if shift:
            page.keyboard.down("Shift")
        page.mouse.click(*self.place(x, y), button=button, click_count=count)
        if shift:
            page.keyboard.up("Shift")

    def drag(self, start: tuple[float, float], end: tuple[float, float], button: Any = "left") -> None:
        """Drags from one pixel to another."""
        mouse = self.frontend.page.mouse
        mouse.move(*self.place(*start))
        mouse.down(button=button)
        mouse.move(*self.place(*end), steps=4)
        mouse.up(button=button)

    def zoom_in(self, at: tuple[float, float], turn: int) -> None:
        """Turns the wheel over a pixel and waits until the picture is enlarged."""
        mouse = self.frontend.page.mouse
        mouse.move(*self.place(*at))
        mouse.wheel(0, -turn)
        self.root.locator(".where").filter(has_text="%").wait_for()

    def press(self, *keys: str) -> None:
        """Presses keys on the stage."""
        for key in keys:
            self.stage.press(key)

    def button(self, name: str) -> Locator:
        """A button of the toolbar by its data attribute, such as `action=undo`."""
        key, value = name.split("=")
        return self.root.locator(f'button[data-{key}="{value}"]')

    def wait_status(self, words: str) -> None:
        """Waits until the status line holds these words."""
        self.root.locator(".status").filter(has_text=words).wait_for()

    @property
    def note(self) -> str:
        """The line below it."""
        return self.root.locator(".note").inner_text()


def points(text: str) -> list[tuple[int, int]]:
    """The points of a coordinate input."""
    return [(point["x"], point["y"]) for point in json.loads(text)]
