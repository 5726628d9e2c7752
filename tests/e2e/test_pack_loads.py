"""The pack as the host sees it when it starts."""

from __future__ import annotations

import pytest

from host import PACK_NAME, HeadlessHost

pytestmark = pytest.mark.e2e


def test_startup_shows_no_error_of_ours(startup_log: str) -> None:
    # The template pictures are not installed, which the host reports as an error of its own.
    errors = [line for line in startup_log.splitlines() if "ERROR" in line and "template asset" not in line]
    assert errors == []
    assert "Traceback" not in startup_log and "IMPORT FAILED" not in startup_log


@pytest.mark.parametrize("name", ["P3SInject", "PointMask", "RefDropApply"])
def test_node_is_offered_with_its_help(host: HeadlessHost, name: str) -> None:
    node = host.object_info()[name]
    assert node["python_module"] == f"custom_nodes.{PACK_NAME}"
    assert node["display_name"] and node["description"] and node["category"]
