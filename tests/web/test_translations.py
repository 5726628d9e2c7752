"""The editor shows the nodes in the language that is set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from frontend import Frontend

import locales

LANGUAGE = "fr"
TEXTS_OF_NODE = """
(id) => {
    const node = window.app.graph.getNodeById(id);
    return [node.title, node.inputs[0].localized_name ?? node.inputs[0].label];
}
"""


@pytest.fixture
def in_french(frontend: Frontend) -> Iterator[Frontend]:
    frontend.host.post("/settings/Comfy.Locale", LANGUAGE)
    frontend.load()
    frontend.new_graph()
    yield frontend
    frontend.host.post("/settings/Comfy.Locale", "en")
    frontend.load()


def test_texts_of_a_node(in_french: Frontend) -> None:
    ids = in_french.add({"mask": ["PointMask", 100, 100, {}, None]}, [])
    title, name = in_french.evaluate(TEXTS_OF_NODE, ids["mask"])
    want = locales.read(LANGUAGE)["PointMask"]
    assert title == want["display_name"]
    assert name == want["inputs"]["image"]["name"]
