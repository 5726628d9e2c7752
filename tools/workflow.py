"""Turns a workflow as the ComfyUI editor saves it (UI format 0.4) into the API format that /prompt takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from subgraphs import BYPASSED, MUTED, Json, flatten

WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR")
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
    flat_nodes, flat_links = flatten(graph)
    nodes = {node["id"]: node for node in flat_nodes}
    links = {link[0]: link for link in flat_links}
    prompt: Json = {}
    for node in nodes.values():
        kind = node["type"]
        if node.get("mode", 0) in (MUTED, BYPASSED) or kind in EDITOR_ONLY:
            continue
        if kind not in object_info:
            raise WorkflowFormatError(f"Node {node['id']}: the host has no node {kind!r}; install its pack.")
        inputs = widget_inputs(node, object_info[kind])
        inputs |= {name: value for name, value in node.get("overrides", {}).items() if name in inputs}
        inputs.update(linked_inputs(node, nodes, links))
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs}
    return prompt


def widget_specs(info: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Name, options and type of the inputs a node shows as widgets, in the order their values are saved."""
    for section in ("required", "optional"):
        for name in info["input_order"].get(section, ()):
            kind, *rest = info["input"][section][name]
            options = rest[0] if rest else {}
            # A list in place of the type is the older way to write a combo.
            kind = "COMBO" if isinstance(kind, list) else kind
            if kind in WIDGET_TYPES and not options.get("forceInput"):
                yield name, options, kind


def widget_inputs(node: Mapping[str, Any], info: Mapping[str, Any]) -> Json:
    """Input name -> value, from the positional (or, in some packs, named) widget values of a node."""
    values = node.get("widgets_values") or []
    specs = list(widget_specs(info))
    if isinstance(values, Mapping):
        return {name: values[name] for name, _, _ in specs if name in values}
    inputs: Json = {}
    position = 0
    for name, options, kind in specs:
        if position >= len(values):
            raise WorkflowFormatError(
                f"Node {node['id']} ({node['type']}): no value for {name}; the file holds {len(values)}, "
                f"the host's node has {', '.join(spec[0] for spec in specs)}. Save it again in the editor."
            )
        inputs[name] = values[position]
        position += 1
        if has_control(name, options, kind) and position < len(values) and values[position] in CONTROL_VALUES:
            position += 1
    return inputs


def has_control(name: str, options: Mapping[str, Any], kind: str) -> bool:
    """Whether the editor saves an extra value (fixed, randomize, ...) after this widget's own."""
    return bool(options.get("control_after_generate")) or (kind == "INT" and name in ("seed", "noise_seed"))


def linked_inputs(node: Mapping[str, Any], nodes: Mapping[Id, Json], links: Links) -> Json:
    """Input name -> [node id, output slot], for every input whose link leads to a node that runs."""
    inputs: Json = {}
    for slot in node.get("inputs") or ():
        source = find_source(slot.get("link"), nodes, links)
        if source is not None:
            inputs[slot["name"]] = source
    return inputs


def find_source(link_id: Id | None, nodes: Mapping[Id, Json], links: Links) -> list[Any] | None:
    """The output that feeds a link, looking through reroutes and bypassed nodes; None when nothing does."""
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
        elif node.get("mode", 0) == BYPASSED:
            link_id = bypass_link(node, slot, kind)
        elif node["type"] == "PrimitiveNode":
            # Its value was copied into the target's widget when the file was saved.
            return None
        else:
            return [str(origin), slot]
    return None


def bypass_link(node: Mapping[str, Any], slot: int, kind: str) -> Id | None:
    """The link a bypassed node passes on: the input in the same place if its type fits, else the first."""
    inputs = node.get("inputs") or []
    same_place = [inputs[slot]] if slot < len(inputs) else []
    for candidate in [*same_place, *inputs]:
        if candidate["type"] == kind:
            link: Id | None = candidate.get("link")
            return link
    return None
