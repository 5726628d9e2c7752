"""Puts what is inside a workflow's subgraphs into the graph around them, under ids such as 5:3, as the editor does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Json = dict[str, Any]
Link = list[Any]
# What a subgraph's own links have for a node where they begin or end at its border.
INPUTS, OUTPUTS = -10, -20
ANY_INPUT = "-1"
MUTED, BYPASSED = 2, 4
LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


def flatten(graph: Mapping[str, Any]) -> tuple[list[Json], list[Link]]:
    """Nodes and links (lists of six) of a UI-format graph, all subgraphs taken apart.

    At every input and output of a subgraph there is a reroute instead. `overrides` of a node, name -> value, are the
    widget values that were set on the outside of the subgraph it comes from.
    """
    definitions = {each["id"]: each for each in graph.get("definitions", {}).get("subgraphs", ())}
    return _flatten(graph["nodes"], graph["links"], definitions)


def _flatten(
    nodes: Sequence[Json], links: Sequence[Link], definitions: Mapping[str, Json]
) -> tuple[list[Json], list[Link]]:
    flat_nodes: list[Json] = []
    flat_links = [list(link) for link in links]
    for node in nodes:
        if node["type"] not in definitions or node.get("mode", 0) in (MUTED, BYPASSED):
            flat_nodes.append(node)
            continue
        for link in flat_links:
            if link[1] == node["id"]:
                link[1:3] = f"{node['id']}:out{link[2]}", 0
        inner_nodes, inner_links = _inside(node, definitions)
        flat_nodes += inner_nodes
        flat_links += inner_links
    return flat_nodes, flat_links


def _inside(outside: Json, definitions: Mapping[str, Json]) -> tuple[list[Json], list[Link]]:
    """Nodes and links of one subgraph's node as parts of the graph that it stands in."""
    subgraph = definitions[outside["type"]]
    links = [[link[key] for key in LINK] for link in subgraph["links"]]
    nodes = {str(node["id"]): node for node in subgraph["nodes"]}
    for target, name, value in _values_of_outside(outside, subgraph, links):
        if target in nodes:
            nodes[target] = {**nodes[target], "overrides": {**nodes[target].get("overrides", {}), name: value}}
    for link in links:
        if link[1] == INPUTS:
            link[1:3] = f"in{link[2]}", 0
    # A subgraph in itself would have no end; its node stays, of a type that no host has.
    others = {key: each for key, each in definitions.items() if key != outside["type"]}
    inner_nodes, inner_links = _flatten(list(nodes.values()), links, others)
    feeding = {link[4]: link[0] for link in inner_links if link[3] == OUTPUTS}
    inner_nodes += [_reroute(f"out{slot}", feeding.get(slot)) for slot in range(len(subgraph["outputs"]))]
    path = f"{outside['id']}:"
    outer_links = {slot["name"]: slot.get("link") for slot in outside.get("inputs") or ()}
    borders = [
        _reroute(f"{path}in{slot}", outer_links.get(each["name"])) for slot, each in enumerate(subgraph["inputs"])
    ]
    return borders + [_moved(node, path) for node in inner_nodes], [
        [f"{path}{link[0]}", f"{path}{link[1]}", *link[2:]] for link in inner_links
    ]


def _values_of_outside(outside: Json, subgraph: Json, links: Sequence[Link]) -> Iterator[tuple[str, str, Any]]:
    """Node inside, name and value of each widget that is set on the outside of a subgraph."""
    shown = [slot["name"] for slot in outside.get("inputs") or () if slot.get("widget")]
    # Files of older editors list the widgets: node inside, or -1 for an input, and name.
    listed = outside.get("properties", {}).get("proxyWidgets")
    places = [(ANY_INPUT, name) for name in shown] if listed is None else [(place[0], place[1]) for place in listed]
    values = dict(zip(places, outside.get("widgets_values") or (), strict=False))
    values |= {(ANY_INPUT, name): value for name, value in outside.get("overrides", {}).items()}
    slots = {each["name"]: index for index, each in enumerate(subgraph["inputs"])}
    inputs = {node["id"]: node.get("inputs") for node in subgraph["nodes"]}
    for (place, name), value in values.items():
        if value is None:
            continue
        if place != ANY_INPUT:
            yield place, name, value
        for _, origin, slot, target, target_slot, _ in links:
            if place == ANY_INPUT and origin == INPUTS and slot == slots.get(name) and target != OUTPUTS:
                yield str(target), inputs[target][target_slot]["name"], value


def _reroute(name: str, link: Any) -> Json:
    return {"id": name, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": link}]}


def _moved(node: Json, path: str) -> Json:
    """The node with ids that hold outside of its subgraph."""
    inputs = [
        slot if slot.get("link") is None else {**slot, "link": f"{path}{slot['link']}"}
        for slot in node.get("inputs") or ()
    ]
    return {**node, "id": f"{path}{node['id']}", "inputs": inputs}
