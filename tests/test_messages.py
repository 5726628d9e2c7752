"""Every error message of the pack: one or two plain sentences about something that the user can see."""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from bootstrap import ROOT
from messages import is_clear
from refattention.nodes import RefAttentionExtension

FILES = sorted([*(ROOT / "core").rglob("*.py"), *(ROOT / "nodes").rglob("*.py")])
# What a message may speak of besides inputs and nodes: things that users see in files, pictures and menus.
THINGS = ("file", "checkpoint", "model", "sampler", "picture", "prompt", "weights")


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each exception that a module raises; what is filled in later stands as {expression}."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            text = text_of(node.exc.args[0])
            if text is not None:
                yield node.lineno, text


def text_of(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            value.value if isinstance(value, ast.Constant) else f"{{{ast.unparse(value)}}}" for value in node.values
        )
    return None


MESSAGES = [(path.relative_to(ROOT).as_posix(), *found) for path in FILES for found in texts_of(path)]


def names_of_inputs() -> set[str]:
    """Ids of nodes and of their inputs, and what they are called on the screen."""
    names = set()
    for node in asyncio.run(RefAttentionExtension().get_node_list()):
        schema = node.define_schema()
        names |= {schema.node_id, schema.display_name}
        names |= {name for each in schema.inputs for name in (each.id, each.display_name) if name}
    return names


SUBJECTS = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in (*names_of_inputs(), *THINGS)), re.IGNORECASE)


def test_there_are_messages() -> None:
    assert len(MESSAGES) > 80


@pytest.mark.parametrize(("path", "line", "text"), MESSAGES, ids=[f"{path}:{line}" for path, line, _ in MESSAGES])
def test_message(path: str, line: int, text: str) -> None:
    filled = re.sub(r"^\{[^{}]*\}", "Something", text)
    filled = re.sub(r"\{[^{}]*\}", "7", filled)
    assert is_clear(filled), text
    assert "{" in text or SUBJECTS.search(text), text


@pytest.mark.parametrize("path", sorted((ROOT / "nodes").glob("*.py")), ids=lambda path: path.name)
def test_nodes_are_named_by_their_id(path: Path) -> None:
    """The host runs a clone of each class under another name."""
    assert "cls.__name__" not in path.read_text(encoding="utf-8")
