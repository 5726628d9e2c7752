"""The point editor in ComfyUI's frontend, with the mouse and the keyboard, in both of its renderers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from frontend import EditorDriver, Frontend, points
from PIL import Image

from host import ROOT

pytestmark = pytest.mark.e2e

POSITIVE, NEGATIVE = "positive_coords", "negative_coords"
PHOTO_SIZE = (451, 300)
EYES = [(150, 150), (330, 165)]
NOSE = (260, 230)
NODES = {
    "load": ["LoadImage", 40, 100, {"image": "photo.jpg"}, None],
    "mask": ["PointMask", 400, 60, {}, None],
}
LINKS = [["load", 0, "mask", "image"]]


def near(found: list[tuple[int, int]], wanted: list[tuple[float, float]]) -> bool:
    """Whether points are where they were placed; the mouse moves in whole pixels of the screen."""
    return len(found) == len(wanted) and all(
        abs(x - wx) <= 1 and abs(y - wy) <= 1 for (x, y), (wx, wy) in zip(found, wanted, strict=True)
    )


class Scene:
    """A photograph connected to a PointMask, whose editor is ready."""

    def __init__(self, frontend: Frontend, **coordinates: str) -> None:
        self.frontend = frontend
        mask = [*NODES["mask"][:3], coordinates, None]
        self.ids = frontend.add({**NODES, "mask": mask}, LINKS)
        self.node = self.ids["mask"]
        self.editor: EditorDriver = frontend.editor().wait_ready()

    def text(self, name: str) -> str:
        text: str = self.frontend.widget(self.node, name)
        return text

    @property
    def positive(self) -> list[tuple[int, int]]:
        return points(self.text(POSITIVE))

    @property
    def negative(self) -> list[tuple[int, int]]:
        return points(self.text(NEGATIVE))


@pytest.fixture
def scene(frontend: Frontend) -> Scene:
    return Scene(frontend)


@pytest.fixture
def with_eyes(scene: Scene) -> Scene:
    """One positive point on each eye."""
    for eye in EYES:
        scene.editor.click(*eye)
    return scene


def history(frontend: Frontend) -> tuple[int, int]:
    """How many steps the graph's own undo and redo have."""
    tracker = "window.app.extensionManager.workflow.activeWorkflow.changeTracker"
    undo, redo = frontend.evaluate(f"() => [{tracker}.undoQueue.length, {tracker}.redoQueue.length]")
    return undo, redo


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


def test_clicks_place_points_of_both_signs(scene: Scene) -> None:
    scene.editor.click(*EYES[0])
    scene.editor.click(*EYES[1], shift=True)
    scene.editor.click(*NOSE, button="right")
    assert near(scene.positive, [EYES[0]])
    assert near(scene.negative, [EYES[1], NOSE])
    assert scene.frontend.page.locator(".litecontextmenu, .p-contextmenu").count() == 0


def test_sign_of_the_toolbar_is_that_of_a_click(scene: Scene) -> None:
    scene.editor.button("sign=negative").click()
    scene.editor.click(*NOSE)
    assert (scene.positive, near(scene.negative, [NOSE])) == ([], True)
    assert scene.editor.button("sign=negative").get_attribute("aria-pressed") == "true"


def test_corners_are_the_first_and_the_last_pixel(scene: Scene) -> None:
    width, height = PHOTO_SIZE
    # Beside the picture, and yet near enough for its outermost pixels.
    scene.editor.click(-4, -4)
    scene.editor.click(width + 3, height + 3)
    assert scene.positive == [(0, 0), (width - 1, height - 1)]


@pytest.mark.parametrize("zoom", [0.6, 1.4])
def test_clicks_hit_their_pixel_at_any_zoom_of_the_graph(scene: Scene, zoom: float) -> None:
    frontend = scene.frontend
    frontend.evaluate(
        """([id, zoom]) => {
            const { canvas } = window.app;
            const { pos, size } = canvas.graph.getNodeById(id);
            canvas.ds.scale = zoom;
            canvas.ds.offset = [200 / zoom - pos[0], 800 / zoom - pos[1] - size[1]];
            canvas.setDirty(true, true);
        }""",
        [scene.node, zoom],
    )
    frontend.page.wait_for_timeout(400)
    scene.editor.click(*EYES[0])
    scene.editor.click(*NOSE, button="right")
    for (x, y), wanted in zip([*scene.positive, *scene.negative], [EYES[0], NOSE], strict=True):
        assert abs(x - wanted[0]) <= 2 and abs(y - wanted[1]) <= 2


def test_drag_moves_a_point_as_one_step(with_eyes: Scene) -> None:
    with_eyes.editor.drag(EYES[0], NOSE)
    assert near(with_eyes.positive, [NOSE, EYES[1]])
    with_eyes.editor.press("Control+z")
    assert near(with_eyes.positive, EYES)


def test_drag_beyond_the_edge_stays_in_the_picture(with_eyes: Scene) -> None:
    with_eyes.editor.drag(EYES[0], (-200, 150))
    assert with_eyes.positive[0][0] == 0
    assert near([with_eyes.positive[0]], [(0, 150)])


def test_double_click_removes_a_point_but_not_the_one_it_just_placed(with_eyes: Scene) -> None:
    with_eyes.editor.click(*EYES[0], count=2)
    assert near(with_eyes.positive, [EYES[1]])
    with_eyes.editor.click(*NOSE, count=2)
    assert near(with_eyes.positive, [EYES[1], NOSE])


def test_delete_removes_the_selected_point_and_never_the_node(with_eyes: Scene) -> None:
    with_eyes.editor.click(*EYES[1])
    with_eyes.editor.press("Delete")
    assert near(with_eyes.positive, [EYES[0]])
    with_eyes.editor.press("Delete", "Backspace")
    assert near(with_eyes.positive, [EYES[0]])
    assert len(with_eyes.frontend.graph()["nodes"]) == 2


def test_undo_and_redo_stay_in_the_editor(with_eyes: Scene) -> None:
    before = history(with_eyes.frontend)
    with_eyes.editor.press("Control+z")
    with_eyes.frontend.page.wait_for_timeout(100)
    assert near(with_eyes.positive, EYES[:1])
    # Each change in the editor is also a step that the graph can take back.
    assert history(with_eyes.frontend) == (before[0] + 1, 0)
    with_eyes.editor.press("Control+z")
    assert with_eyes.positive == []
    with_eyes.editor.press("Control+Shift+z", "Control+y")
    assert near(with_eyes.positive, EYES)
    with_eyes.editor.button("action=undo").click()
    assert near(with_eyes.positive, EYES[:1])


def test_clear_removes_all_and_can_be_undone(with_eyes: Scene) -> None:
    with_eyes.editor.click(*NOSE, button="right")
    with_eyes.editor.button("action=clear").click()
    assert (with_eyes.text(POSITIVE), with_eyes.text(NEGATIVE)) == ("[]", "[]")
    with_eyes.editor.button("action=undo").click()
    assert near(with_eyes.positive, EYES) and near(with_eyes.negative, [NOSE])


def test_everything_by_keyboard(scene: Scene) -> None:
    scene.editor.stage.focus()
    scene.editor.press("Enter")
    assert scene.positive == [(225, 150)]
    scene.editor.press("ArrowLeft", "Shift+ArrowUp")
    assert scene.positive == [(224, 140)]
    scene.editor.press("Escape", "n", "Shift+ArrowDown", "ArrowRight", "Enter")
    assert scene.negative == [(226, 160)]
    scene.editor.press("Tab")
    assert scene.editor.stage.evaluate("(stage) => stage.getRootNode().activeElement !== stage"), "Tab is trapped"
    scene.editor.stage.focus()
    scene.editor.press("Tab", "Delete")
    assert (scene.positive, scene.negative) == ([], [(226, 160)])
    scene.editor.press("p", "Shift+Tab", "ArrowDown")
    assert scene.negative == [(226, 161)]
    scene.editor.wait_status("Negative point 1 at 226, 161.")


def test_arrow_keys_are_one_step_of_the_graph(with_eyes: Scene) -> None:
    before = history(with_eyes.frontend)
    with_eyes.editor.press(*["ArrowRight"] * 8)
    with_eyes.frontend.page.wait_for_timeout(1000)
    assert history(with_eyes.frontend) == (before[0] + 1, 0)
    with_eyes.editor.press("Control+z")
    assert near(with_eyes.positive, EYES)


def test_wheel_zooms_the_picture_and_elsewhere_the_graph(scene: Scene) -> None:
    frontend, mouse = scene.frontend, scene.frontend.page.mouse

    def graph_zoom() -> float:
        zoom: float = frontend.evaluate("() => window.app.canvas.ds.scale")
        return zoom

    mouse.move(*scene.editor.place(*EYES[0]))
    mouse.wheel(0, -400)
    frontend.page.wait_for_timeout(200)
    assert graph_zoom() == 1
    assert "%" in scene.editor.root.locator(".where").inner_text()
    # The pixel below the mouse stayed there.
    mouse.down()
    mouse.up()
    assert near(scene.positive, [EYES[0]])
    scene.editor.press("0")
    mouse.move(*frontend.title_place(scene.node))
    mouse.wheel(0, -200)
    frontend.page.wait_for_timeout(200)
    assert graph_zoom() != 1


@pytest.mark.parametrize("way", ["middle", "space"])
def test_pan_moves_the_picture_and_not_the_graph(scene: Scene, way: str) -> None:
    editor, frontend = scene.editor, scene.frontend
    middle = (PHOTO_SIZE[0] / 2, PHOTO_SIZE[1] / 2)
    beside = (middle[0] + 40, middle[1])
    editor.stage.focus()
    frontend.page.mouse.move(*editor.place(*middle))
    frontend.page.mouse.wheel(0, -600)
    offset = frontend.evaluate("() => [...window.app.canvas.ds.offset]")
    if way == "space":
        frontend.page.keyboard.down(" ")
    editor.drag(middle, beside, button="middle" if way == "middle" else "left")
    if way == "space":
        frontend.page.keyboard.up(" ")
    assert frontend.evaluate("() => [...window.app.canvas.ds.offset]") == offset
    assert scene.positive == []
    editor.click(*beside)
    assert near(scene.positive, [middle])


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
    editor.root.get_by_text("The points changed since this mask was made.").wait_for()


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


def test_text_written_elsewhere_is_taken_over(scene: Scene) -> None:
    scene.frontend.set_widget(scene.node, POSITIVE, '[{"x": 30, "y": 40}, {"x": 5, "y": 6, "name": "ear"}]')
    scene.editor.wait_status("2 positive, 0 negative")
    scene.editor.drag((30, 40), (60, 80))
    moved, kept = json.loads(scene.text(POSITIVE))
    assert near([(moved["x"], moved["y"])], [(60, 80)])
    assert kept == {"x": 5, "y": 6, "name": "ear"}


@pytest.mark.parametrize(
    ("text", "words", "count"),
    [
        pytest.param('[{"x": 1, "y": 2', "is not valid JSON", 0, id="malformed"),
        pytest.param('[[{"x": 9, "y": 9}], [{"x": 5, "y": 5}]]', "one list for each of 2 frames", 1, id="frames"),
        pytest.param('[{"x": 9, "y": 9}, [1, 2]]', "something that is not a point", 1, id="pair"),
        pytest.param('{"x": 9, "y": 9}', "is not a list of points", 0, id="object"),
    ],
)
def test_text_that_is_no_plain_list_is_never_touched(scene: Scene, text: str, words: str, count: int) -> None:
    scene.frontend.set_widget(scene.node, POSITIVE, text)
    scene.editor.wait_status(words)
    scene.editor.click(*EYES[0])
    scene.editor.wait_status("cannot be changed here")
    if count:
        scene.editor.press("Tab")
        scene.editor.wait_status("Positive point 1 at 9, 9.")
        scene.editor.press("ArrowLeft", "Delete")
    scene.editor.click(*NOSE, button="right")
    scene.editor.button("action=clear").click()
    scene.editor.press("Control+z")
    assert scene.text(POSITIVE) == text
    assert near(scene.negative, [NOSE])
    scene.editor.wait_status("Undone.")


def test_linked_input_is_shown_and_not_changed(frontend: Frontend) -> None:
    scene = Scene(frontend)
    text = '[{"x": 30, "y": 40}]'
    links = [["text", 0, scene.node, POSITIVE]]
    frontend.add({"text": ["PrimitiveString", 40, 520, {"value": text}, None]}, links)
    scene.editor.wait_status("Read only: positive_coords comes from a link.")
    scene.editor.click(*EYES[0])
    scene.editor.click(*NOSE, button="right")
    assert scene.text(POSITIVE) == "[]"
    assert near(scene.negative, [NOSE])
    prompt = frontend.prompt()[str(scene.node)]["inputs"]
    assert isinstance(prompt[POSITIVE], list)


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


def test_editor_works_inside_a_subgraph(with_eyes: Scene) -> None:
    frontend = with_eyes.frontend
    frontend.evaluate(
        """(id) => {
            const { canvas } = window.app;
            canvas.deselectAll();
            canvas.select(canvas.graph.getNodeById(id));
            const { node } = canvas.graph.convertToSubgraph(canvas.selectedItems);
            canvas.setGraph(node.subgraph);
            canvas.ds.scale = 1;
            canvas.ds.offset = [300, 100];
        }""",
        with_eyes.node,
    )
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


def test_names_and_roles_for_those_who_do_not_see(scene: Scene) -> None:
    tree = scene.editor.root.aria_snapshot()
    for line in (
        'toolbar "Points"',
        'button "Subject" [pressed]',
        'button "Leave out"',
        'button "Undo" [disabled]',
        'button "Remove all points" [disabled]',
        'application "Point editor"',
        'status "No points yet."',
    ):
        assert line in tree, tree
    scene.editor.stage.focus()
    assert scene.editor.stage.evaluate("(stage) => getComputedStyle(stage).boxShadow") != "none"
