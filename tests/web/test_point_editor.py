"""The point editor with the mouse and the keyboard, in both of the frontend's renderers."""

from __future__ import annotations

import json

import pytest
from frontend import Frontend
from playwright.sync_api import expect
from point_scene import EYES, NEGATIVE, NOSE, PHOTO_SIZE, POSITIVE, Scene, near

pytestmark = pytest.mark.e2e


def history(frontend: Frontend) -> tuple[int, int]:
    """How many steps the graph's own undo and redo have."""
    tracker = "window.app.extensionManager.workflow.activeWorkflow.changeTracker"
    undo, redo = frontend.evaluate(f"() => [{tracker}.undoQueue.length, {tracker}.redoQueue.length]")
    return undo, redo


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

    scene.editor.zoom_in(EYES[0], 400)
    assert graph_zoom() == 1
    # The pixel below the mouse stayed there.
    mouse.down()
    mouse.up()
    assert near(scene.positive, [EYES[0]])
    scene.editor.press("0")
    mouse.move(*frontend.title_place(scene.node))
    mouse.wheel(0, -200)
    frontend.page.wait_for_function("() => window.app.canvas.ds.scale !== 1")


@pytest.mark.parametrize("way", ["middle", "space"])
def test_pan_moves_the_picture_and_not_the_graph(scene: Scene, way: str) -> None:
    editor, frontend = scene.editor, scene.frontend
    middle = (PHOTO_SIZE[0] / 2, PHOTO_SIZE[1] / 2)
    beside = (middle[0] + 40, middle[1])
    editor.stage.focus()
    editor.zoom_in(middle, 600)
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


def touch(scene: Scene, *steps: tuple[str, list[tuple[float, float]]]) -> None:
    """Fingers on the screen: "Start", "Move" or "End", and where all of them are then."""
    page = scene.frontend.page
    session = page.context.new_cdp_session(page)
    for kind, places in steps:
        fingers = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
        session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": fingers})
    session.detach()
    page.wait_for_timeout(100)


def test_a_finger_places_a_point_and_moves_it(scene: Scene) -> None:
    eye, nose = scene.editor.place(*EYES[0]), scene.editor.place(*NOSE)
    touch(scene, ("Start", [eye]), ("Move", [nose]), ("End", []))
    assert near(scene.positive, [NOSE])


@pytest.mark.parametrize("second", ["on the stage", "beside it"])
def test_pinching_leaves_no_point(scene: Scene, second: str) -> None:
    eye, nose = scene.editor.place(*EYES[0]), scene.editor.place(*NOSE)
    beside = scene.frontend.title_place(scene.ids["load"])
    other = nose if second == "on the stage" else beside
    farther = (other[0] + 30, other[1] + 10)
    for _ in range(2):
        touch(scene, ("Start", [eye]), ("Start", [eye, other]), ("Move", [eye, farther]), ("End", [eye]), ("End", []))
    assert (scene.positive, scene.negative) == ([], [])
    scene.editor.click(*EYES[0])
    assert near(scene.positive, [EYES[0]])
    # With the first finger on a point that is there already, it stays where it is.
    for _ in range(2):
        touch(scene, ("Start", [eye]), ("Move", [nose]), ("Start", [nose, other]), ("End", []))
    assert near(scene.positive, [EYES[0]])


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
    place = scene.editor.stage.bounding_box()
    scene.frontend.set_widget(scene.node, POSITIVE, text)
    scene.editor.wait_status(words)
    assert scene.editor.stage.bounding_box() == place, "words of several lines moved the picture"
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


@pytest.mark.parametrize("count", [1, 20])
def test_words_that_find_no_room_are_cut_between_lines(scene: Scene, count: int) -> None:
    """A problem of some lines leaves whole lines of the hint, or none."""
    scene.frontend.set_widget(scene.node, POSITIVE, json.dumps([{"x": 9999, "y": 9}] * count))
    scene.editor.wait_status("Outside the picture")
    lines = scene.editor.root.locator(".words").evaluate(
        """(words) => {
            const line = parseFloat(getComputedStyle(words).lineHeight);
            const top = (each) => each.getBoundingClientRect().top;
            const scale = words.getBoundingClientRect().height / words.offsetHeight;
            const note = words.querySelector(".note");
            return [words.offsetHeight / line, (top(note) - top(words)) / scale / line];
        }"""
    )
    assert [round(each) for each in lines] == pytest.approx(lines, abs=0.05)
    assert round(lines[0]) == 3 and (round(lines[1]) >= 3) == (count == 20)


def test_only_negative_points_ask_for_the_subject(scene: Scene) -> None:
    scene.frontend.set_widget(scene.node, NEGATIVE, '[{"x": 30, "y": 40}]')
    scene.editor.wait_status("0 positive, 1 negative: click on the subject")


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


def test_names_and_roles_for_those_who_do_not_see(scene: Scene) -> None:
    expect(scene.editor.root).to_contain_text("No points yet")  # what it shows is written a moment after it is there
    tree = scene.editor.root.aria_snapshot()
    for line in (
        'toolbar "Points"',
        'button "Subject" [pressed]',
        'button "Leave out"',
        'button "Undo" [disabled]',
        'button "Remove all points" [disabled]',
        'application "Point editor"',
        'status "No points yet: click on the subject."',
    ):
        assert line in tree, tree
    scene.editor.stage.focus()
    assert scene.editor.stage.evaluate("(stage) => getComputedStyle(stage).boxShadow") != "none"
