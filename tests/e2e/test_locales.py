"""Translations: English follows the nodes, every language follows English, the host hands them out."""

from __future__ import annotations

import pytest

import locales
from host import PACK_NAME, HeadlessHost

pytestmark = pytest.mark.e2e


def test_english_is_what_the_nodes_say(host: HeadlessHost) -> None:
    assert locales.read("en") == locales.texts_of(host.object_info(), PACK_NAME), "run dev/locales.py"


@pytest.mark.parametrize("language", locales.LANGUAGES)
def test_language_is_complete(language: str) -> None:
    assert not locales.differences(locales.read("en"), locales.read(language))


def test_differences_are_seen() -> None:
    english = {"A": {"description": "one", "inputs": {"x": {"name": "x", "tooltip": "two"}}}}
    other = {"A": {"description": "un", "inputs": {"x": {"name": "x", "tooltip": "two"}, "y": {"name": "y"}}}}
    assert locales.differences(english, other) == [
        "has A.inputs.y.name, which no node has",
        "has A.inputs.x.tooltip in English",
    ]
    assert locales.differences(english, {}) == [
        "lacks A.description",
        "lacks A.inputs.x.name",
        "lacks A.inputs.x.tooltip",
    ]


def test_host_hands_them_out(host: HeadlessHost) -> None:
    given = host.get("/i18n")
    for language in ("en", *locales.LANGUAGES):
        assert given[language]["nodeDefs"].items() >= locales.read(language).items()
