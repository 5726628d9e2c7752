"""Puts values from the table into a workflow, typed as the host's node classes want them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from node_specs import DYNAMIC_COMBO, Fault, Spec, default_of, faults, live_specs, some_of

from batch.table import DELIMITERS, TableError, Wrong

Prompt = dict[str, Any]
Place = tuple[str, str]  # node id and input name
TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
OTHER = {"INT": "not a whole number", "FLOAT": "not a number", "BOOLEAN": "neither true nor false", "STRING": "no text"}
INTEGER = re.compile(r"[+-]?\d+(\.0*)?")
TYPED = ("INT", "FLOAT", "BOOLEAN", "STRING", "COMBO", DYNAMIC_COMBO)


class Workflow:
    """An API-format workflow and what the host knows about its nodes.

    Args:
        object_info: the host's answer to /object_info.
    """

    def __init__(self, prompt: Prompt, object_info: Mapping[str, Any]) -> None:
        self.prompt = prompt
        self._info = object_info
        self._places: dict[str, Place] = {}
        self._text = json.dumps(prompt)

    def place(self, column: str) -> Place:
        """Node id and input name that a column means.

        Raises: TableError when it means none, or more than one.
        """
        if column not in self._places:
            self._places[column] = _find(self.prompt, column)
        return self._places[column]

    def values(self, overrides: Mapping[str, Any]) -> dict[Place, tuple[str, Any]]:
        """Column and value of each place that overrides name.

        Raises: TableError when a column is none, or two columns are the same input.
        """
        found: dict[Place, tuple[str, Any]] = {}
        wrong: list[Wrong] = []
        for column, value in overrides.items():
            try:
                place = self.place(column)
            except TableError as error:
                wrong += error.every
                continue
            if place in found:
                wrong.append(Wrong(f"it is the same input as {found[place][0]!r}; keep one of them.", column))
            found[place] = column, value
        if wrong:
            raise TableError(*wrong)
        return found

    def apply(self, overrides: Mapping[str, Any], decimal_comma: bool = False) -> Prompt:
        """A copy of the workflow with other input values.

        Args:
            overrides: `node.input` -> value, where node is an id, a title or a class of the workflow.

        Raises: TableError naming each column that is no input, or whose value has the wrong type.
        """
        changed: Prompt = json.loads(self._text)
        wrong: list[Wrong] = []
        for place, (column, value) in self._in_order(overrides):
            try:
                self._set(changed, place, column, value, decimal_comma)
            except TableError as error:
                wrong += error.every
        if wrong:
            raise TableError(*wrong)
        return changed

    def _set(self, changed: Prompt, place: Place, column: str, value: Any, decimal_comma: bool) -> None:
        node, name = place
        spec = self.spec(place, column, changed)
        inputs = changed[node]["inputs"]
        if isinstance(inputs.get(name), list) and spec.kind and spec.kind not in TYPED and _is_scalar(value):
            raise TableError(Wrong(f"{name} is connected to another node; a value cannot replace it.", column))
        inputs[name] = _typed(value, spec, column, decimal_comma)
        if spec.kind == DYNAMIC_COMBO:
            self._choose(changed, node, spec)

    def faults(self, prompt: Prompt) -> Iterator[Fault]:
        """What the host would refuse the workflow for, with inputs as in `prompt`."""
        return faults(prompt, self._info)

    def spec(self, place: Place, column: str, prompt: Prompt | None = None) -> Spec:
        """The description of an input while the workflow's inputs are as in `prompt`.

        Raises: TableError when the host does not have it.
        """
        node, name = place
        each = (prompt or self.prompt)[node]
        kind = each["class_type"]
        if kind not in self._info:
            raise TableError(f"Node {node}: the host has no node {kind!r}; install its pack.")
        for spec in live_specs(self._info[kind], each["inputs"]):
            if spec.name == name:
                return spec
        # Inputs that come and go with others are not listed; such a node takes what the workflow already holds.
        if name in self.prompt[node]["inputs"] and name in each["inputs"]:
            return Spec(name, "", {})
        combo = name.rpartition(".")[0]
        if combo in each["inputs"]:
            raise TableError(Wrong(f"{combo} is {each['inputs'][combo]!r}, which has no such input.", column))
        known = some_of((spec.name for spec in live_specs(self._info[kind], each["inputs"])), name)
        raise TableError(Wrong(f"{kind} has no input {name!r}; it has {known}.", column))

    def _in_order(self, overrides: Mapping[str, Any]) -> list[tuple[Place, tuple[str, Any]]]:
        """A dynamic combo before what its choice brings: resize_type before resize_type.width."""
        return sorted(self.values(overrides).items(), key=lambda item: item[0][1].count("."))

    def _choose(self, prompt: Prompt, node: str, combo: Spec) -> None:
        """Leaves a node with the inputs that belong to the choice: those it has, else their defaults."""
        inputs = prompt[node]["inputs"]
        live = {spec.name: spec for spec in live_specs(self._info[prompt[node]["class_type"]], inputs)}
        inside = f"{combo.name}."
        for name in [name for name in inputs if name.startswith(inside) and name not in live]:
            del inputs[name]
        for name, spec in live.items():
            if name.startswith(inside) and name not in inputs and (default := default_of(spec)) is not None:
                inputs[name] = default


def seeds(prompt: Prompt) -> dict[str, int]:
    """`node.input` -> value of all seeds in a workflow."""
    return {
        f"{node}.{name}": value
        for node, each in prompt.items()
        for name, value in each["inputs"].items()
        if name.endswith("seed") and isinstance(value, int)
    }


def _find(prompt: Prompt, column: str) -> Place:
    """Titles and inputs may hold dots themselves, so every dot is tried as the one between them."""
    if "." not in column:
        raise TableError(Wrong("write node.input, where node is its id, title or class.", column))
    places = [(node, name) for called, name in _splits(column) for node in _called(prompt, called)]
    if not places:
        called = column.rpartition(".")[0]
        known = some_of((name for key, each in prompt.items() for name in (key, *_names(each)) if name), called)
        hint = " If that is several columns: each but name is node.input." if set(column) & set(DELIMITERS) else ""
        raise TableError(Wrong(f"the workflow has no node {called!r}; it has {known}.{hint}", column))
    if len(places) > 1:
        called = " or ".join(repr(called) for called, _ in _splits(column) if _called(prompt, called))
        ids = " or ".join(dict.fromkeys(node for node, _ in places))
        raise TableError(Wrong(f"several nodes answer to {called}; use an id, {ids}.", column))
    return places[0]


def _splits(column: str) -> Iterator[tuple[str, str]]:
    for position, letter in enumerate(column):
        if letter == ".":
            yield column[:position], column[position + 1 :]


def _called(prompt: Prompt, name: str) -> list[str]:
    return [name] if name in prompt else [key for key, each in prompt.items() if name in _names(each)]


def _names(node: Mapping[str, Any]) -> tuple[str, str]:
    return node["class_type"], (node.get("_meta") or {}).get("title", "")


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, (list, dict))


def _typed(value: Any, spec: Spec, column: str, decimal_comma: bool) -> Any:
    """`value` as the type an input wants; tables of text hold text only."""
    try:
        if spec.kind == "INT":
            return _integer(value)
        if spec.kind == "FLOAT":
            return _number(value, decimal_comma)
        if spec.kind == "BOOLEAN":
            return value if isinstance(value, bool) else TRUTH[str(value).strip().lower()]
        if spec.kind == "STRING":
            return value if isinstance(value, str) else json.dumps(value)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        why = ": write a point for the comma" if spec.kind == "FLOAT" and "," in str(value) else ""
        raise TableError(Wrong(f"{value!r} is {OTHER[spec.kind]}{why}.", column)) from error
    if spec.kind == DYNAMIC_COMBO and value not in (keys := [each["key"] for each in spec.options["options"]]):
        raise TableError(Wrong(f"{value!r} is not one of {some_of(keys, value)}.", column))
    if spec.kind == "COMBO":
        return next((each for each in spec.options.get("options") or () if str(each) == value), value)
    return value


def _integer(value: Any) -> int:
    """48 and 48.0, but not 48.9, which would become another number than the table says."""
    if isinstance(value, bool) or not INTEGER.fullmatch(str(value).strip()):
        raise ValueError
    return int(str(value).strip().partition(".")[0])


def _number(value: Any, decimal_comma: bool) -> float:
    if isinstance(value, bool):  # which Python takes for a number
        raise ValueError
    if decimal_comma and isinstance(value, str) and "." not in value:
        value = value.replace(",", ".")
    number = float(value)
    if not math.isfinite(number) or "_" in str(value):
        raise ValueError
    return number
