"""One host and one browser for all browser tests, one page for each of the frontend's renderers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from frontend import BROWSER_ARGS, RENDERERS, Frontend
from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from point_scene import EYES, Scene
from setup_browser import find_browser, missing_reason

from demo_host import demo_host
from host import ROOT, HeadlessHost

FOLDER = Path(__file__).parent
PICTURES = ROOT / "out" / "web"
LOG_LINES = 40


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These tests come last: Playwright leaves an event loop running, beside which no other can be started."""
    items.sort(key=lambda item: FOLDER in item.path.parents)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    frontend = getattr(item, "funcargs", {}).get("frontend")
    if frontend is not None and report.when == "call" and report.failed:
        picture = PICTURES / f"failed_{item.name}.png"
        frontend.screenshot(picture)
        report.sections.append(("the page", str(picture)))
        report.sections.append(("end of the host's log", "\n".join(frontend.host.log().splitlines()[-LOG_LINES:])))
    return report


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeadlessHost]:
    with demo_host(tmp_path_factory.mktemp("web-host")) as running:
        Image.linear_gradient("L").resize((100, 300)).save(running.base / "input" / "narrow.png")
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip(missing_reason())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=BROWSER_ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session", params=list(RENDERERS))
def renderer_page(request: pytest.FixtureRequest, browser: Browser, host: HeadlessHost) -> Iterator[Frontend]:
    frontend = Frontend(browser, host, request.param)
    yield frontend
    frontend.page.close()


@pytest.fixture
def frontend(renderer_page: Frontend) -> Iterator[Frontend]:
    """The page with an empty graph; complaints of the page about the pack fail the test."""
    renderer_page.errors.clear()
    renderer_page.new_graph()
    yield renderer_page
    assert renderer_page.errors == []


@pytest.fixture
def scene(frontend: Frontend) -> Scene:
    return Scene(frontend)


@pytest.fixture
def with_eyes(scene: Scene) -> Scene:
    """One positive point on each eye."""
    for eye in EYES:
        scene.editor.click(*eye)
    return scene
