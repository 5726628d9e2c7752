"""Turns a workflow as the ComfyUI editor saves it (UI format 0.4) into the API format that /prompt takes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from node_specs import DYNAMIC_COMBO, Spec, chosen, default_of, live_specs, specs

from subgraphs import BYPASSED, MUTED, Json, flatten

# Type of an input that is a widget -> what a new one holds, where its description has no default.
WIDGETS: dict[str, Any] = {
    **dict.fromkeys(("INT", "FLOAT", "COMBO", DYNAMIC_COMBO, "CURVE")),
    **{"STRING": "", "BOOLEAN": False, "COLOR": "#ffffff", "PAINTER": ""},
    **{"IMAGECOMPARE": ["", ""], "COLORS": [], "BOUNDING_BOXES": []},
}
# Widgets that only the editor makes, behind those of the node's inputs.
MORE_WIDGETS = {"SaveGLB": [("image", "")], "Preview3D": [("image", "")]}
ANY = ("*", "", 0)
# Types of inputs that hold what the editor's page draws when the workflow is queued.
DRAWN = ("LOAD_3D", "WEBCAM", "AUDIO_RECORD")
# Nodes that only the editor knows: they never reach the host.
EDITOR_ONLY = ("Note", "MarkdownNote", "Reroute", "PrimitiveNode")
CONTROL_VALUES = ("fixed", "increment", "decrement", "randomize")

# Ids of nodes and links are numbers, and texts such as 5:3 inside of subgraphs.
Id = int | str
Links = Mapping[Id, Sequence[Any]]


class WorkflowFormatError(ValueError):
    """The graph is not a UI-format workflow this host can run."""


def ui_to_api(graph: Mapping[str, Any], object_info: Mapping[str, Any]) -> Json:
    """API format of a UI-format graph; a node inside a subgraph gets an id such as 5:3.

    Args:
        graph: the parsed file: nodes, links as lists of six, and definitions of subgraphs if it has any.
        object_info: the host's answer to /object_info.

    Raises: WorkflowFormatError naming the node when the graph and the host's node classes do not fit.
    """
    if "nodes" not in graph or "links" not in graph:
        raise WorkflowFormatError("The file has no nodes and links; save it in the editor's UI format.")
    try:
        return _converted(*flatten(graph), object_info)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise WorkflowFormatError(f"The file is damaged ({error!r}); save it again in the editor.") from error


def _converted(flat_nodes: Sequence[Json], flat_links: Sequence[Sequence[Any]], object_info: Mapping[str, Any]) -> Json:
    nodes: dict[Id, Json] = {node["id"]: node for node in flat_nodes}
    links: Links = {link[0]: link for link in flat_links}
    prompt: Json = {}
    running = []
    for node in nodes.values():
        kind = node["type"]
        if node.get("mode", 0) in (MUTED, BYPASSED) or kind in EDITOR_ONLY:
            continue
        if kind not in object_info:
            raise WorkflowFormatError(f"Node {node['id']}: the host has no node {kind!r}; install its pack.")
        inputs = widget_inputs(node, object_info[kind]) | dict(MORE_WIDGETS.get(kind, ()))
        for name, value in node.get("overrides", {}).items():
            if name in inputs:
                _set(inputs, node, name, value, object_info)
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs}
        running.append(node)
    own = {name: dict(each["inputs"]) for name, each in prompt.items()}
    borders = {node["border"]: node for node in flat_nodes if "border" in node}
    for node in running:
        inputs = prompt[str(node["id"])]["inputs"]
        for slot in node.get("inputs") or ():
            source = find_source(slot.get("link"), nodes, links)
            if isinstance(source, list):
                if source[0] in prompt:
                    inputs[slot["name"]] = source
            elif source is not None and source["type"] == "PrimitiveNode":
                _set_by_primitive(inputs, node, slot["name"], source, object_info)
            elif source is not None:
                with contextlib.suppress(LookupError):
                    _set(inputs, node, slot["name"], border_value(source, borders, own), object_info)
    return prompt


def _set(inputs: Json, node: Json, name: str, value: Any, object_info: Mapping[str, Any]) -> None:
    """Sets a value that does not come from the node itself."""
    specs_now = live_specs(object_info[node["type"]], inputs)
    is_dynamic = any(spec.name == name and spec.kind == DYNAMIC_COMBO for spec in specs_now)
    if is_dynamic and inputs.get(name) != value:
        raise WorkflowFormatError(
            f"Node {node['id']} ({node['type']}): {name} is set to {value!r} from outside, but the node's own widgets "
            f"are those of {inputs.get(name)!r}; set it in the node itself."
        )
    inputs[name] = value


def _set_by_primitive(inputs: Json, node: Json, name: str, primitive: Json, object_info: Mapping[str, Any]) -> None:
    """Its value is copied into the widget it is connected to when the workflow is queued."""
    if "." in name:
        raise WorkflowFormatError(
            f"Node {node['id']}: {name} is set by a primitive node, for which the editor may use another value than it "
            "shows; set the value in the node itself."
        )
    if name in inputs and (values := primitive.get("widgets_values")):
        _set(inputs, node, name, values[0], object_info)


def border_value(border: Json, borders: Mapping[tuple[str, str], Json], values: Mapping[str, Json]) -> Any:
    """What the input of a subgraph holds: the value set on its outside, else that of the first widget it feeds.

    Raises: LookupError when it feeds none.
    """
    if "value" in border:
        return border["value"]
    for target in border["targets"]:
        if target in borders:
            return border_value(borders[target], borders, values)
        if target[1] in values.get(target[0], {}):
            return values[target[0]][target[1]]
    raise LookupError


def is_widget(spec: Spec) -> bool:
    """Whether the editor shows an input as a widget, so that a file holds a value for it."""
    return spec.options.get("widgetType", spec.kind) in WIDGETS and not spec.options.get("forceInput")


def widget_inputs(node: Mapping[str, Any], info: Mapping[str, Any]) -> Json:
    """Input name -> value, from the positional (or, in some packs, named) widget values of a node."""
    saved = node.get("widgets_values") or []
    if isinstance(saved, Mapping):
        names = [spec.name for spec in live_specs(info, saved) if is_widget(spec)]
        return {name: saved[name] for name in names if name in saved}
    values = list(saved)
    inputs: Json = {}
    if node["type"] == "CustomCombo":
        # Choice and index, then any number of options, which are widgets that only the editor knows.
        names = ["choice", "index", *(f"option{number}" for number in range(1, len(values) - 1))]
        return dict(zip(names, values, strict=False))
    waiting = list(specs(info["input"], info.get("input_order")))
    while waiting:
        spec = waiting.pop(0)
        if spec.kind in DRAWN:
            raise WorkflowFormatError(
                f"Node {node['id']} ({node['type']}): {spec.name} is drawn by the editor's page; export the workflow "
                "there in API format."
            )
        if not is_widget(spec):
            continue
        if spec.kind == "IMAGECOMPARE":
            values = [WIDGETS[spec.kind], *values[1:]]  # which pictures it shows is not kept
        # An input that is newer than the file has its default, as the editor takes it.
        value = values.pop(0) if values else _first_value(node, spec)
        if has_control(spec) and values and values[0] in CONTROL_VALUES:
            values.pop(0)
        inputs[spec.name] = {"__value__": value} if isinstance(value, list) else value
        if spec.kind == DYNAMIC_COMBO:
            waiting[:0] = chosen(spec, value)
    return inputs


def _first_value(node: Mapping[str, Any], spec: Spec) -> Any:
    """What a widget holds in a new node: the file may be older than the input."""
    value = default_of(spec)
    value = WIDGETS[spec.options.get("widgetType", spec.kind)] if value is None else value
    if value is None:
        raise WorkflowFormatError(
            f"Node {node['id']} ({node['type']}): no value for {spec.name}, which has no default. Save it again in the "
            "editor."
        )
    return value


def has_control(spec: Spec) -> bool:
    """Whether the editor saves an extra value (fixed, randomize, ...) after this widget's own."""
    own = spec.name.rpartition(".")[2]
    return bool(spec.options.get("control_after_generate")) or (spec.kind == "INT" and own in ("seed", "noise_seed"))


def find_source(link_id: Id | None, nodes: Mapping[Id, Json], links: Links) -> list[Any] | Json | None:
    """The output that feeds a link, looking through reroutes and bypassed nodes.

    Returns: node id and slot; a primitive node, or the border of a subgraph that has no link from outside; None when
        nothing feeds it.
    """
    seen: set[Id] = set()
    while link_id is not None:
        if link_id not in links:
            raise WorkflowFormatError(f"Link {link_id} is used but not listed; save the file again in the editor.")
        if link_id in seen:
            raise WorkflowFormatError(f"Link {link_id} is part of a circle of reroutes; remove one of them.")
        seen.add(link_id)
        _, origin, slot, _, _, kind = links[link_id]
        node = nodes.get(origin)
        if node is None:
            raise WorkflowFormatError(f"Link {link_id} starts at node {origin}, which does not exist.")
        if node.get("mode", 0) == MUTED:
            return None
        if node["type"] == "Reroute":
            link_id = node["inputs"][0].get("link")
            if link_id is None and "border" in node:
                return node
        elif node.get("mode", 0) == BYPASSED:
            link_id = bypass_link(node, slot, kind)
        elif node["type"] == "PrimitiveNode":
            return node
        else:
            return [str(origin), slot]
    return None


def bypass_link(node: Mapping[str, Any], slot: int, kind: str) -> Id | None:
    """The link a bypassed node passes on: the input in the same place if its type fits, else the first that does."""
    inputs = node.get("inputs") or []
    outputs = node.get("outputs") or []
    made = outputs[slot]["type"] if slot < len(outputs) else kind
    if kind in ANY:
        chosen_inputs = inputs[slot : slot + 1] or inputs[:1]
    else:
        same_place = [each for each in inputs[slot : slot + 1] if _fits(each["type"], made, kind)]
        same_type = [each for each in inputs if each["type"] == kind]
        chosen_inputs = [*same_place, *same_type, *(each for each in inputs if _fits(each["type"], made, kind))]
    link: Id | None = chosen_inputs[0].get("link") if chosen_inputs else None
    return link


def _fits(kind: Any, *others: Any) -> bool:
    """Whether an input of a type can be connected to outputs of others; a type may be a list such as IMAGE,MASK."""
    mine = set(str(kind).lower().split(","))
    return all(kind in ANY or other in ANY or mine & set(str(other).lower().split(",")) for other in others)
