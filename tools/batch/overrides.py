"""Puts values from the table into a workflow, typed as the host's node classes want them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from batch.table import TableError

Prompt = dict[str, Any]
NUMBERS: dict[str, type[int] | type[float]] = {"INT": int, "FLOAT": float}
TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def apply(prompt: Prompt, overrides: Mapping[str, Any], object_info: Mapping[str, Any]) -> Prompt:
    """A copy of an API workflow with other input values.

    Args:
        overrides: `node.input` -> value, where node is an id, a title or a class of the workflow.
        object_info: what the host knows about its node classes.

    Raises: TableError naming the column when no or several nodes answer to it, or its value has the wrong type.
    """
    changed: Prompt = json.loads(json.dumps(prompt))
    for column, value in overrides.items():
        node, name = find(changed, column)
        kind, _ = _spec(changed, object_info, node, name)
        changed[node]["inputs"][name] = _typed(value, kind, column)
    return changed


def find(prompt: Prompt, column: str) -> tuple[str, str]:
    """Node id and input name that a column means.

    Raises: TableError when it means none, or more than one.
    """
    node, dot, name = column.rpartition(".")
    if not dot:
        raise TableError(f"Column {column!r}: write node.input, where node is its id, title or class.")
    found = [node] if node in prompt else [key for key, value in prompt.items() if node in _names(value)]
    if not found:
        known = ", ".join(f"{key} ({value['class_type']})" for key, value in prompt.items())
        raise TableError(f"Column {column!r}: the workflow has no node {node!r}; it has {known}.")
    if len(found) > 1:
        raise TableError(f"Column {column!r}: several nodes answer to {node!r}; use an id, {' or '.join(found)}.")
    return found[0], name


def input_files(
    prompt: Prompt, overrides: Mapping[str, Any], object_info: Mapping[str, Any], folder: Path
) -> Iterator[tuple[str, Path]]:
    """Column and file of each override of a picture input that names a file on this machine.

    Args:
        folder: relative paths start here.
    """
    for column, value in overrides.items():
        node, name = find(prompt, column)
        _, options = _spec(prompt, object_info, node, name)
        if options.get("image_upload") and (folder / str(value)).is_file():
            yield column, folder / str(value)


def seeds(prompt: Prompt) -> dict[str, int]:
    """`node.input` -> value of all seeds in a workflow."""
    return {
        f"{node}.{name}": value
        for node, each in prompt.items()
        for name, value in each["inputs"].items()
        if name.endswith("seed") and isinstance(value, int)
    }


def _names(node: Mapping[str, Any]) -> tuple[str, str]:
    return node["class_type"], node.get("_meta", {}).get("title", "")


def _spec(prompt: Prompt, object_info: Mapping[str, Any], node: str, name: str) -> tuple[str, Mapping[str, Any]]:
    kind = prompt[node]["class_type"]
    if kind not in object_info:
        raise TableError(f"Node {node}: the host has no node {kind!r}; install its pack.")
    for section in object_info[kind]["input"].values():
        if name in section:
            type_name, *options = section[name]
            # A list in place of the type is the older way to write a combo.
            return "COMBO" if isinstance(type_name, list) else type_name, options[0] if options else {}
    # Inputs that come and go with others are not listed; such a node takes what the workflow already holds.
    if name in prompt[node]["inputs"]:
        return "", {}
    raise TableError(f"Column {node}.{name}: {kind} has no input {name!r}.")


def _typed(value: Any, kind: str, column: str) -> Any:
    """`value` as the type an input wants; tables in CSV hold text only."""
    try:
        if kind in NUMBERS:
            if isinstance(value, bool):  # which Python takes for a number
                raise ValueError
            return NUMBERS[kind](value)
        if kind == "BOOLEAN":
            return value if isinstance(value, bool) else TRUTH[str(value).strip().lower()]
        if kind == "STRING":
            return value if isinstance(value, str) else json.dumps(value)
    except (ValueError, TypeError, KeyError) as error:
        raise TableError(f"Column {column!r}: {value!r} is no {kind}.") from error
    return value
