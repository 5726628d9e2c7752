"""The point editor as part of a graph: pictures, runs, saving, undo, copies, subgraphs; in both renderers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from frontend import EditorDriver, Frontend, points
from PIL import Image
from point_scene import EYES, NEGATIVE, NODES, NOSE, PHOTO_SIZE, POSITIVE, Scene, near

from host import ROOT

pytestmark = pytest.mark.e2e


def brightness(editor: EditorDriver, x: float, y: float) -> float:
    """How bright the stage is at a pixel of the picture."""
    box = editor.stage.bounding_box()
    assert box is not None
    place_x, place_y = editor.place(x, y)
    value: float = editor.stage.locator("canvas").evaluate(
        """(canvas, [x, y]) => {
            const at = [Math.round(x * canvas.width), Math.round(y * canvas.height)];
            const { data } = canvas.getContext("2d").getImageData(...at, 1, 1);
            return (data[0] + data[1] + data[2]) / 3;
        }""",
        [(place_x - box["x"]) / box["width"], (place_y - box["y"]) / box["height"]],
    )
    return value


def test_run_shows_the_mask_and_keeps_the_nodes_size(with_eyes: Scene) -> None:
    frontend, editor = with_eyes.frontend, with_eyes.editor
    frontend.set_widget(with_eyes.node, "radius", 30)
    frontend.add({"preview": ["MaskPreview", 900, 400, {}, None]}, [[with_eyes.node, 0, "preview", "mask"]])
    size = "(id) => [...window.app.canvas.graph.getNodeById(id).size]"
    before = frontend.evaluate(size, with_eyes.node)
    inside, outside = (EYES[0][0] + 22, EYES[0][1]), (EYES[0][0] + 45, EYES[0][1])
    plain = [brightness(editor, *inside), brightness(editor, *outside)]
    assert editor.button("mode=mask").is_disabled()
    frontend.queue()
    editor.root.locator('button[data-mode="mask"]:enabled').wait_for()
    frontend.page.wait_for_timeout(300)
    shown = [brightness(editor, *inside), brightness(editor, *outside)]
    assert abs(shown[0] - plain[0]) < 12 and shown[1] < 0.6 * plain[1], (plain, shown)
    assert "discs of 30 pixels" in editor.note
    frontend.screenshot(ROOT / "out" / "web" / f"mask_{frontend.renderer}.png")
    editor.button("mode=picture").click()
    frontend.page.wait_for_timeout(100)
    assert abs(brightness(editor, *outside) - plain[1]) < 12
    assert frontend.evaluate(size, with_eyes.node) == before
    editor.click(*NOSE, button="right")
    editor.root.get_by_text("The points changed since this mask was made: run again.").wait_for()


def test_other_picture_hides_the_mask(with_eyes: Scene) -> None:
    frontend, editor = with_eyes.frontend, with_eyes.editor
    frontend.add({"preview": ["MaskPreview", 900, 400, {}, None]}, [[with_eyes.node, 0, "preview", "mask"]])
    frontend.queue()
    editor.root.locator('button[data-mode="mask"]:enabled').wait_for()
    frontend.set_widget(with_eyes.ids["load"], "image", "narrow.png")
    editor.root.get_by_text("100 \u00d7 300").wait_for()
    assert editor.button("mode=mask").is_disabled()
    assert "discs" not in editor.note
    editor.wait_status("Outside the picture of 100 \u00d7 300: positive point 1, positive point 2")


def test_saved_workflow_holds_the_coordinates_and_nothing_else(with_eyes: Scene) -> None:
    frontend = with_eyes.frontend
    with_eyes.editor.click(*NOSE, button="right")
    texts = [with_eyes.text(POSITIVE), with_eyes.text(NEGATIVE)]
    frontend.set_widget(with_eyes.node, "grow", 7)
    graph = frontend.graph()
    frontend.new_graph()
    frontend.open(graph)
    editor = frontend.editor().wait_ready()
    assert [frontend.widget(with_eyes.node, name) for name in (POSITIVE, NEGATIVE)] == texts
    assert frontend.widget(with_eyes.node, "grow") == 7
    editor.wait_status("2 positive, 1 negative")
    saved = next(node for node in graph["nodes"] if node["type"] == "PointMask")
    assert saved["widgets_values"][:2] == texts
    own = "(id) => window.app.graph.getNodeById(id).widgets.filter((each) => !each.element).length"
    assert len(saved["widgets_values"]) == frontend.evaluate(own, with_eyes.node)
    assert "point_editor" not in json.dumps(graph)
    inputs = frontend.prompt()[str(with_eyes.node)]["inputs"]
    assert [inputs[POSITIVE], inputs[NEGATIVE], inputs["grow"]] == [*texts, 7]
    assert "point_editor" not in inputs


def test_published_workflow_opens_with_its_values(frontend: Frontend) -> None:
    """It was written without the editor, which must not shift the values of the other inputs."""
    graph = json.loads((ROOT / "workflows" / "point_mask.json").read_text(encoding="utf-8"))
    frontend.open(graph)
    frontend.editor().wait_ready().wait_status("1 positive, 1 negative")
    saved, opened = (
        next(node["widgets_values"] for node in each["nodes"] if node["type"] == "PointMask")
        for each in (graph, frontend.graph())
    )
    assert opened == saved


def test_points_are_there_after_the_page_is_loaded_again(with_eyes: Scene) -> None:
    frontend = with_eyes.frontend
    text = with_eyes.text(POSITIVE)
    frontend.page.wait_for_timeout(1000)  # the frontend keeps open workflows after a pause
    frontend.load()
    frontend.page.wait_for_function("() => window.app.graph.nodes.length === 2")
    frontend.editor().wait_ready().wait_status("2 positive, 0 negative")
    assert frontend.widget(with_eyes.node, POSITIVE) == text


def test_exported_prompt_gives_the_same_mask_without_a_browser(with_eyes: Scene) -> None:
    frontend, host = with_eyes.frontend, with_eyes.frontend.host
    with_eyes.editor.click(*NOSE, button="right")
    nodes: dict[str, Any] = {
        "picture": ["MaskToImage", 900, 300, {}, None],
        "save": ["SaveImage", 900, 400, {"filename_prefix": f"mask_{frontend.renderer}"}, None],
    }
    frontend.add(nodes, [[with_eyes.node, 0, "picture", "mask"], ["picture", 0, "save", "images"]])
    frontend.queue()
    prompt = frontend.prompt()
    assert json.loads(prompt[str(with_eyes.node)]["inputs"][NEGATIVE]) and "point_editor" not in json.dumps(prompt)
    host.free()  # so that it is computed again
    (repeated,) = host.images(host.run(prompt))
    first, second = sorted((host.base / "output").glob(f"mask_{frontend.renderer}_*.png"))[-2:]
    assert second == repeated
    with Image.open(first) as one, Image.open(second) as two:
        assert one.size == PHOTO_SIZE
        assert one.tobytes() == two.tobytes()
        assert one.convert("L").getextrema() == (0, 255)


def test_graph_undo_takes_a_point_back(with_eyes: Scene) -> None:
    frontend = with_eyes.frontend
    assert frontend.evaluate("() => window.app.extensionManager.workflow.activeWorkflow.isModified")
    frontend.select(with_eyes.node)
    frontend.page.keyboard.press("Control+z")
    editor = frontend.editor()
    editor.wait_status("1 positive, 0 negative")
    assert near(points(frontend.widget(with_eyes.node, POSITIVE)), EYES[:1])
    frontend.page.keyboard.press("Control+y")
    editor.wait_status("2 positive, 0 negative")
    assert near(points(frontend.widget(with_eyes.node, POSITIVE)), EYES)


def test_pasted_node_has_the_points_and_a_life_of_its_own(with_eyes: Scene) -> None:
    frontend = with_eyes.frontend
    frontend.select(with_eyes.node)
    frontend.page.keyboard.press("Control+c")
    frontend.page.mouse.move(1000, 300)
    frontend.page.keyboard.press("Control+Shift+v")
    frontend.page.wait_for_function("() => window.app.graph.nodes.length === 3")
    copy = frontend.evaluate("() => window.app.graph.nodes.at(-1).id")
    assert frontend.widget(copy, POSITIVE) == with_eyes.text(POSITIVE)
    # Connected by Ctrl+Shift+V to the same picture, so it shows it at once.
    frontend.editor(1).wait_ready()
    frontend.set_widget(copy, POSITIVE, "[]")
    frontend.page.wait_for_timeout(400)
    assert near(with_eyes.positive, EYES)


def test_two_editors_do_not_meet(scene: Scene) -> None:
    frontend = scene.frontend
    other = frontend.add({"other": ["PointMask", 860, 60, {}, None]}, [[scene.ids["load"], 0, "other", "image"]])[
        "other"
    ]
    second = frontend.editor(1).wait_ready()
    scene.editor.click(*EYES[0])
    second.click(*NOSE)
    scene.editor.press("Control+z")
    assert scene.positive == []
    assert near(points(frontend.widget(other, POSITIVE)), [NOSE])


def test_removed_node_leaves_nothing_behind(scene: Scene) -> None:
    frontend = scene.frontend
    handle = scene.editor.root.element_handle()
    frontend.evaluate("(id) => window.app.graph.remove(window.app.graph.getNodeById(id))", scene.node)
    frontend.page.wait_for_timeout(400)
    assert not handle.evaluate("(element) => element.isConnected")
    # An editor that still listened would take the wheel or fail on the missing node.
    frontend.page.mouse.move(700, 600)
    frontend.page.mouse.wheel(0, -100)
    assert frontend.page.locator("refattention-point-editor").count() == 0


def test_picture_comes_through_reroutes_and_bypassed_nodes(frontend: Frontend) -> None:
    nodes: dict[str, Any] = {
        "load": NODES["load"],
        "reroute": ["Reroute", 300, 40, {}, None],
        "invert": ["ImageInvert", 300, 540, {}, None],
        "mask": ["PointMask", 560, 60, {}, None],
    }
    links = [["load", 0, "reroute", ""], ["reroute", 0, "invert", "image"], ["invert", 0, "mask", "image"]]
    ids = frontend.add(nodes, links)
    editor = frontend.editor()
    frontend.page.wait_for_timeout(500)
    assert editor.root.locator(".stage.without-picture").count() == 1, "an inverted picture is not the loaded one"
    frontend.evaluate("(id) => { window.app.graph.getNodeById(id).mode = 4; }", ids["invert"])
    editor.wait_ready()
    editor.click(*EYES[0])
    assert near(points(frontend.widget(ids["mask"], POSITIVE)), [EYES[0]])


def test_computed_picture_shows_after_a_preview_beside_it(frontend: Frontend) -> None:
    nodes: dict[str, Any] = {
        "load": NODES["load"],
        "invert": ["ImageInvert", 40, 540, {}, None],
        "preview": ["PreviewImage", 900, 60, {}, None],
        "mask": ["PointMask", 400, 60, {}, None],
    }
    links = [["load", 0, "invert", "image"], ["invert", 0, "preview", "images"], ["invert", 0, "mask", "image"]]
    ids = frontend.add(nodes, links)
    assert "Connect a picture" in frontend.editor().root.locator(".empty").inner_text()
    frontend.queue()
    frontend.editor().wait_ready().click(*EYES[0])
    assert near(points(frontend.widget(ids["mask"], POSITIVE)), [EYES[0]])


def test_a_loader_that_resizes_is_not_taken_for_its_file(frontend: Frontend) -> None:
    """Its picture shows once a preview or a run tells what it really is."""
    loader = frontend.evaluate(
        """() => {
            const { app, LiteGraph } = window;
            class Resizing extends LiteGraph.LGraphNode {
                static nodeData = { inputs: { image: { name: "image", type: "COMBO", image_upload: true } } };
                constructor() {
                    super("Load and Resize");
                    this.addOutput("IMAGE", "IMAGE");
                    const values = ["refattention_photo.jpg", "narrow.png"];
                    this.addWidget("combo", "image", values[0], () => {}, { values });
                }
            }
            LiteGraph.registerNodeType("LoadAndResize", Resizing);
            const node = LiteGraph.createNode("LoadAndResize");
            node.pos = [40, 100];
            app.graph.add(node);
            // As the frontend does with the file of every node that has such a widget.
            const file = { filename: "refattention_photo.jpg", subfolder: "", type: "input" };
            app.nodeOutputs[node.id] = { images: [file] };
            return node.id;
        }"""
    )
    ids = frontend.add({"mask": NODES["mask"]}, [[loader, 0, "mask", "image"]])
    frontend.page.wait_for_timeout(600)
    editor = frontend.editor()
    assert editor.root.locator(".stage.without-picture").count() == 1
    editor.click(*EYES[0])
    assert frontend.widget(ids["mask"], POSITIVE) == "[]"
    preview = frontend.add({"preview": ["PreviewImage", 900, 60, {}, None]}, [[loader, 0, "preview", "images"]])
    shown = "(id) => { window.app.nodeOutputs[id] = { images: [{ filename: 'narrow.png', type: 'input' }] }; }"
    frontend.evaluate(shown, preview["preview"])
    frontend.editor(size=(100, 300)).wait_ready().click(50, 200)
    assert near(points(frontend.widget(ids["mask"], POSITIVE)), [(50, 200)])


def test_the_file_on_the_outside_of_a_subgraph_is_shown_inside(scene: Scene) -> None:
    frontend = scene.frontend
    outside = frontend.evaluate(
        """(ids) => {
            const { canvas } = window.app;
            canvas.deselectAll();
            for (const id of ids) canvas.select(canvas.graph.getNodeById(id));
            const { node } = canvas.graph.convertToSubgraph(canvas.selectedItems);
            const inner = node.subgraph.nodes.find((each) => each.type === "LoadImage");
            const slot = inner.inputs.find((input) => input.widget?.name === "image");
            if (slot.link == null) node.subgraph.addInput("image", "COMBO").connect(slot, inner);
            return node.id;
        }""",
        [scene.ids["load"], scene.node],
    )
    frontend.page.wait_for_timeout(300)
    frontend.set_widget(outside, "image", "narrow.png")
    frontend.evaluate(
        """(id) => {
            const { canvas } = window.app;
            canvas.setGraph(canvas.graph.getNodeById(id).subgraph);
            canvas.ds.scale = 1;
            canvas.ds.offset = [100, 100];
        }""",
        outside,
    )
    editor = frontend.editor(size=(100, 300)).wait_ready()
    editor.root.get_by_text("100 \u00d7 300").wait_for()
    frontend.page.wait_for_timeout(300)
    editor.click(50, 200)
    (prompt,) = (node for node in frontend.prompt().values() if node["class_type"] == "PointMask")
    assert near(points(prompt["inputs"][POSITIVE]), [(50, 200)])
    (loader,) = (node for node in frontend.prompt().values() if node["class_type"] == "LoadImage")
    assert loader["inputs"]["image"] == "narrow.png"
    frontend.screenshot(ROOT / "out" / "web" / f"promoted_{frontend.renderer}.png")
    frontend.evaluate("() => window.app.canvas.setGraph(window.app.rootGraph)")


def test_editor_works_inside_a_subgraph(with_eyes: Scene) -> None:
    frontend = with_eyes.frontend
    frontend.enter_subgraph(with_eyes.node)
    editor = frontend.editor().wait_ready()
    inner = frontend.evaluate("() => window.app.canvas.graph.nodes.find((node) => node.type === 'PointMask').id")
    assert near(points(frontend.widget(inner, POSITIVE)), EYES)
    frontend.page.wait_for_timeout(300)
    editor.click(*NOSE, button="right")
    assert near(points(frontend.widget(inner, NEGATIVE)), [NOSE])
    prompt = next(node for node in frontend.prompt().values() if node["class_type"] == "PointMask")
    assert near(points(prompt["inputs"][POSITIVE]), EYES) and near(points(prompt["inputs"][NEGATIVE]), [NOSE])
    frontend.evaluate("() => window.app.canvas.setGraph(window.app.rootGraph)")


def test_coordinates_on_the_outside_of_a_subgraph_are_edited_inside(with_eyes: Scene) -> None:
    frontend = with_eyes.frontend
    host_id = frontend.evaluate(
        """(id) => {
            const { canvas } = window.app;
            canvas.deselectAll();
            canvas.select(canvas.graph.getNodeById(id));
            const { node: outside } = canvas.graph.convertToSubgraph(canvas.selectedItems);
            const inner = outside.subgraph.nodes.find((node) => node.type === "PointMask");
            const slot = inner.inputs.find((input) => input.widget?.name === "positive_coords");
            outside.subgraph.addInput("positive_coords", "STRING").connect(slot, inner);
            canvas.setGraph(outside.subgraph);
            canvas.ds.scale = 1;
            canvas.ds.offset = [300, 100];
            return outside.id;
        }""",
        with_eyes.node,
    )
    editor = frontend.editor().wait_ready()
    frontend.page.wait_for_timeout(400)
    editor.click(*NOSE)
    prompt = next(node for node in frontend.prompt().values() if node["class_type"] == "PointMask")
    assert near(points(prompt["inputs"][POSITIVE]), [*EYES, NOSE])
    frontend.evaluate("() => window.app.canvas.setGraph(window.app.rootGraph)")
    assert near(points(frontend.widget(host_id, POSITIVE)), [*EYES, NOSE])
