"""Puts what is inside a workflow's subgraphs into the graph around them, under ids such as 5:3, as the editor does."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
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

    At every input and output of a subgraph there is a reroute instead. That of an input has `border`: the id of the
    subgraph's node and the name of the input, `targets`: node and input inside that it feeds, those with a widget, and
    perhaps `value`, which was set on the outside. `overrides` of a node, name -> value, were set on the outside too.
    """
    nodes, subgraphs = _with_unique_ids(graph)
    links = [[link[key] for key in LINK] if isinstance(link, Mapping) else list(link) for link in graph["links"]]
    return _flatten(nodes, links, {each["id"]: each for each in subgraphs})


def _with_unique_ids(graph: Mapping[str, Any]) -> tuple[list[Json], list[Json]]:
    """Nodes and subgraphs of a graph; a node whose id is taken gets the number that the editor gives it."""
    subgraphs: list[Json] = copy.deepcopy((graph.get("definitions") or {}).get("subgraphs") or [])
    nodes: list[Json] = copy.deepcopy(graph["nodes"])
    taken = {str(node["id"]) for node in nodes}
    numbers = [node["id"] for node in nodes if isinstance(node["id"], int)]
    last = max([graph.get("last_node_id") or (graph.get("state") or {}).get("lastNodeId") or 0, *numbers])
    renamed: dict[str, dict[str, int]] = {}
    for subgraph in subgraphs:
        new = renamed[subgraph["id"]] = {}
        for node in subgraph["nodes"]:
            if str(node["id"]) in taken:
                last += 1
                while str(last) in taken:
                    last += 1
                new[str(node["id"])] = node["id"] = last
            elif isinstance(node["id"], int):
                last = max(last, node["id"])
            taken.add(str(node["id"]))
        for link in subgraph["links"]:
            link |= {end: new.get(str(link[end]), link[end]) for end in ("origin_id", "target_id")}
    for node in [*nodes, *(node for subgraph in subgraphs for node in subgraph["nodes"])]:
        for place in (node.get("properties") or {}).get("proxyWidgets") or ():
            place[0] = str(renamed.get(node["type"], {}).get(str(place[0]), place[0]))
    return nodes, subgraphs


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
    targets = [_targets(slot, subgraph, links, nodes) for slot in range(len(subgraph["inputs"]))]
    values, overrides = _values_of_outside(outside, subgraph, targets)
    for (target, name), value in overrides.items():
        if target in nodes:
            nodes[target] = {**nodes[target], "overrides": {**nodes[target].get("overrides", {}), name: value}}
    for link in links:
        if link[1] == INPUTS:
            link[1:3] = f"in{link[2]}", 0
    # A subgraph in itself would have no end; its node stays, of a type that no host has.
    others = {key: each for key, each in definitions.items() if key != outside["type"]}
    inner_nodes, inner_links = _flatten(list(nodes.values()), links, others)
    feeding = {link[4]: link[0] for link in links if link[3] == OUTPUTS}
    inner_nodes += [_reroute(f"out{slot}", feeding.get(slot)) for slot in range(len(subgraph["outputs"]))]
    path = f"{outside['id']}:"
    outer_links = {slot["name"]: slot.get("link") for slot in outside.get("inputs") or ()}
    borders = []
    for slot, each in enumerate(subgraph["inputs"]):
        border = _reroute(f"{path}in{slot}", outer_links.get(each["name"]))
        border["border"] = str(outside["id"]), each["name"]
        border["targets"] = [(f"{path}{target}", name) for target, name, is_widget in targets[slot] if is_widget]
        if slot in values:
            border["value"] = values[slot]
        borders.append(border)
    return borders + [_moved(node, path) for node in inner_nodes], [
        [f"{path}{link[0]}", f"{path}{link[1]}", *link[2:]] for link in inner_links
    ]


def _targets(
    slot: int, subgraph: Json, links: Sequence[Link], nodes: Mapping[str, Json]
) -> list[tuple[str, str, bool]]:
    """Node, input and whether it is a widget of all that an input of a subgraph feeds, in the editor's order."""
    order = {link: place for place, link in enumerate(subgraph["inputs"][slot].get("linkIds") or ())}
    own = [link for link in links if link[1] == INPUTS and link[2] == slot and str(link[3]) in nodes]
    found = []
    for link in sorted(own, key=lambda link: order.get(link[0], len(order))):
        inputs = nodes[str(link[3])].get("inputs") or ()
        if link[4] < len(inputs):
            found.append((str(link[3]), inputs[link[4]]["name"], bool(inputs[link[4]].get("widget"))))
    return found


def _values_of_outside(
    outside: Json, subgraph: Json, targets: Sequence[Sequence[tuple[str, str, bool]]]
) -> tuple[dict[int, Any], dict[tuple[str, str], Any]]:
    """The values that were set on the outside of a subgraph: of its inputs by slot, and of nodes inside."""
    slots = {each["name"]: slot for slot, each in enumerate(subgraph["inputs"])}
    # Files of older editors list the widgets: node inside, or -1 for an input, and name.
    listed = (outside.get("properties") or {}).get("proxyWidgets")
    if listed is None:
        shown = [(ANY_INPUT, name) for name, slot in slots.items() if any(each[2] for each in targets[slot])]
    else:
        shown = [(str(place[0]), place[1]) for place in listed]
    set_values = outside.get("widgets_values") or ()
    values = dict(zip(shown, set_values, strict=False)) if isinstance(set_values, Sequence) else {}
    values |= {(ANY_INPUT, name): value for name, value in outside.get("overrides", {}).items()}
    fed = {(node, name): slot for slot, each in enumerate(targets) for node, name, _ in each}
    of_inputs: dict[int, Any] = {}
    of_nodes: dict[tuple[str, str], Any] = {}
    for (place, name), value in values.items():
        slot = slots.get(name) if place == ANY_INPUT else fed.get((place, name))
        if value is None:
            continue
        if slot is not None:
            of_inputs[slot] = value
        elif place != ANY_INPUT:
            of_nodes[place, name] = value
    return of_inputs, of_nodes


def _reroute(name: str, link: Any) -> Json:
    return {"id": name, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": link}]}


def _moved(node: Json, path: str) -> Json:
    """The node with ids that hold outside of its subgraph."""
    inputs = [
        slot if slot.get("link") is None else {**slot, "link": f"{path}{slot['link']}"}
        for slot in node.get("inputs") or ()
    ]
    moved = {**node, "id": f"{path}{node['id']}", "inputs": inputs}
    if "border" in node:
        moved["border"] = f"{path}{node['border'][0]}", node["border"][1]
        moved["targets"] = [(f"{path}{target}", name) for target, name in node["targets"]]
    return moved
