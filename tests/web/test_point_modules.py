"""The editor's modules that know nothing of the host, run in the browser they are made for."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from frontend import MODULES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page

from host import HeadlessHost

pytestmark = pytest.mark.e2e
CHECKED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def page(browser: Browser, host: HeadlessHost) -> Any:
    """A page of the host without the frontend on it."""
    page = browser.new_page()
    page.goto(f"{host.url}{MODULES}/view.js")
    for name in ("coordinates", "view", "editor"):
        page.evaluate(f"async () => {{ Object.assign(window, await import('{MODULES}/{name}.js')); }}")
    yield page
    page.close()


coordinates = st.fixed_dictionaries({"x": st.integers(-10, 5000), "y": st.integers(-10, 5000)})


@CHECKED
@given(points=st.lists(coordinates, max_size=8))
def test_text_is_what_python_writes_and_reads(page: Page, points: list[dict[str, int]]) -> None:
    text = page.evaluate("(points) => formatPoints(points)", points)
    assert text == json.dumps(points)
    assert page.evaluate("(text) => parsePoints(text)", text) == {"points": points, "problem": ""}


@CHECKED
@given(text=st.text(max_size=60) | st.text(alphabet='[]{}",:xy0123456789.- ', max_size=60))
def test_any_text_gives_points_or_a_problem(page: Page, text: str) -> None:
    result = page.evaluate("(text) => parsePoints(text)", text)
    if not result["problem"]:
        found = json.loads(text) if text.strip() else []
        assert result["points"] == found


@pytest.mark.parametrize(
    ("text", "points", "problem"),
    [
        ("", [], ""),
        (" \n", [], ""),
        ("[]", [], ""),
        ('[{"x": 1.5, "y": 2}]', [{"x": 1.5, "y": 2}], ""),
        ('[{"x": 0.5, "y": 1}]', [{"x": 0.5, "y": 1}], "holds shares of the picture from 0 to 1 in place of pixels"),
        ('[{"x": 0, "y": 1}]', [{"x": 0, "y": 1}], ""),
        ("[1", [], "is not valid JSON"),
        ("3", [], "is not a list of points"),
        ("[[]]", [], "holds one list for each of 1 frames, the first is shown"),
        ('[{"x": 1}]', [], "holds something that is not a point"),
        ('[{"x": "1", "y": 2}]', [], "holds something that is not a point"),
    ],
)
def test_parse(page: Page, text: str, points: list[Any], problem: str) -> None:
    assert page.evaluate("(text) => parsePoints(text)", text) == {"points": points, "problem": problem}


sides = st.integers(1, 4096)


@CHECKED
@given(width=sides, height=sides, x=st.floats(-1e6, 1e6), y=st.floats(-1e6, 1e6))
def test_clamped_points_are_pixels_of_the_picture(page: Page, width: int, height: int, x: float, y: float) -> None:
    point = page.evaluate(
        "([place, size]) => clampToPicture(place, size)", [{"x": x, "y": y}, {"width": width, "height": height}]
    )
    assert point == {"x": max(0, min(math.floor(x), width - 1)), "y": max(0, min(math.floor(y), height - 1))}


SHOW = """
([stage, picture, steps]) => {
    const view = new View();
    view.resize(stage);
    view.show(picture);
    for (const [x, y, factor, right, down] of steps) {
        view.zoomAt({ x, y }, factor);
        view.pan(right, down);
    }
    const [start, end] = [view.toStage({ x: 0, y: 0 }), view.toStage({ x: picture.width, y: picture.height })];
    const back = view.toPicture(view.toStage({ x: 3.25, y: 7.5 }));
    return { start, end, back, zoom: view.zoom };
}
"""
steps = st.lists(
    st.tuples(st.floats(0, 400), st.floats(0, 300), st.floats(0.2, 5), st.floats(-900, 900), st.floats(-900, 900)),
    max_size=5,
)


@CHECKED
@given(width=sides, height=sides, stage=st.tuples(st.integers(60, 900), st.integers(60, 900)), steps=steps)
def test_view_keeps_the_picture_in_sight(
    page: Page, width: int, height: int, stage: tuple[int, int], steps: list[Any]
) -> None:
    """Fitted, the picture is whole and in the middle; enlarged, no empty room opens beside it but the margin."""
    room, margin = stage, 10
    shown = page.evaluate(
        SHOW, [dict(zip(("width", "height"), stage, strict=True)), {"width": width, "height": height}, steps]
    )
    assert shown["back"]["x"] == pytest.approx(3.25, abs=1e-6) and shown["back"]["y"] == pytest.approx(7.5, abs=1e-6)
    for side, axis in enumerate("xy"):
        start, end = shown["start"][axis], shown["end"][axis]
        if end - start <= room[side] - 2 * margin + 1e-3:
            assert start + end == pytest.approx(room[side], abs=1e-3)
        else:
            assert start <= margin + 1e-3 and end >= room[side] - margin - 1e-3


def test_zoom_keeps_the_place_under_the_pointer(page: Page) -> None:
    before, after = page.evaluate(
        """() => {
            const view = new View();
            view.resize({ width: 400, height: 300 });
            view.show({ width: 4096, height: 3072 });
            const before = view.toPicture({ x: 260, y: 120 });
            view.zoomAt({ x: 260, y: 120 }, 6);
            return [before, view.toPicture({ x: 260, y: 120 })];
        }"""
    )
    assert after == pytest.approx(before)


def test_nearest_marker_in_reach_is_hit(page: Page) -> None:
    script = "(place) => hitMarker([{ x: 10, y: 10 }, { x: 14, y: 10 }, { x: 90, y: 90 }], place, 12)"
    hits = [page.evaluate(script, {"x": x, "y": y}) for x, y in ((9, 10), (12, 10), (15, 10), (50, 50), (90, 101))]
    assert hits == [0, 1, 1, -1, 2]


def test_history_joins_what_belongs_together(page: Page) -> None:
    result = page.evaluate(
        """() => {
            const history = new History();
            const texts = (positive) => ({ positive, negative: "" });
            history.push(texts("a"), "move", 0);
            history.push(texts("b"), "move", 500);
            history.push(texts("c"), "move", 2000);
            history.push(texts("d"), "", 2100);
            const back = ["e", "d", "c", "a"].map((now) => history.undo(texts(now))?.positive ?? null);
            return [back, history.redo(texts("a")).positive, history.canRedo, history.canUndo];
        }"""
    )
    assert result == [["d", "c", "a", None], "c", True, True]


def test_editor_writes_only_what_changed(page: Page) -> None:
    """The text of the sign that was not touched stays as it was written, spaces and all."""
    result = page.evaluate(
        """() => {
            const texts = { positive: '[{"x":1,"y":2}]', negative: '[ {"y": 5, "x": 4} ]' };
            const writes = [];
            const editor = new Editor({
                read: (sign) => ({ text: texts[sign], linked: false }),
                write: (sign, text) => { texts[sign] = text; writes.push(sign); },
                record: () => {},
            });
            editor.refresh();
            editor.size = { width: 50, height: 50 };
            editor.add("positive", { x: 9.9, y: 70 });
            editor.commit();
            editor.commit();
            return [texts, writes];
        }"""
    )
    assert result == [
        {"positive": '[{"x": 1, "y": 2}, {"x": 9, "y": 49}]', "negative": '[ {"y": 5, "x": 4} ]'},
        ["positive"],
    ]
