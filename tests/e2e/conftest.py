"""One host for all end-to-end tests; its log is shown beside a test that failed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from demo_host import demo_host, load_workflow, set_inputs
from host import ROOT, HeadlessHost

LOG_LINES = 60


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    host = getattr(item, "funcargs", {}).get("host")
    if host is not None and report.failed:
        report.sections.append(("end of the host's log", "\n".join(host.log().splitlines()[-LOG_LINES:])))
    return report


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeadlessHost]:
    with demo_host(tmp_path_factory.mktemp("host")) as running:
        yield running


@pytest.fixture(scope="session")
def startup_log(host: HeadlessHost) -> str:
    """What the host said before the first workflow."""
    return host.log().split("got prompt")[0]


@pytest.fixture(scope="session")
def small() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Gives a workflow a small picture and few steps, which is all that most tests need."""

    def shrink(workflow: dict[str, Any]) -> dict[str, Any]:
        workflow = set_inputs(workflow, "EmptyLatentImage", width=256, height=192)
        workflow = set_inputs(workflow, "ImageScaleToTotalPixels", megapixels=0.04)
        return set_inputs(workflow, "KSampler", steps=3)

    return shrink


@pytest.fixture
def workflow() -> dict[str, Any]:
    """The API-format workflow as it is published."""
    return load_workflow()


@pytest.fixture
def small_workflow(workflow: dict[str, Any], small: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    return small(workflow)


@pytest.fixture
def template() -> dict[str, Any]:
    """The UI-format workflow as it is published."""
    path = ROOT / "workflows" / "refdrop.json"
    graph: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return graph
