"""Published files in the editor's format: templates, subgraph blueprints, and a graph around a blueprint that runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from host import ROOT

Graph = dict[str, Any]
TEMPLATES = {path.stem: path for path in sorted((ROOT / "workflows").glob("*.json"))}
BLUEPRINTS = {path.stem: path for path in sorted((ROOT / "subgraphs").glob("*.json"))}

MODEL, TEXT, LATENT, SAMPLER, DECODER = 101, 102, 103, 104, 105
OF_CHECKPOINT = ("MODEL", "CLIP", "VAE")
PICTURES = {name: f"small_refattention_{name}.png" for name in ("garment", "densepose", "parsing")}
PICTURES |= {"person": "small_refattention_person.jpg"}
PICTURES |= dict.fromkeys(("image", "mask"), "small_refattention_garbled_cup.png")
# Values of a blueprint's widgets: small and quick, and a point on something.
VALUES = {"steps": 1, "megapixels": 0.01, "positive_coords": '[{"x": 50, "y": 40}]'}
VALUES |= {"prompt": "a saucer", "reference_prompt": "a saucer"}


def read(path: Path) -> Graph:
    """A graph as it is published."""
    graph: Graph = json.loads(path.read_text(encoding="utf-8"))
    return graph


def without_titles(prompt: Graph) -> Graph:
    """What of an API workflow the host acts on."""
    return {name: {key: node[key] for key in ("class_type", "inputs")} for name, node in prompt.items()}


def nodes_of(graph: Graph) -> Iterator[dict[str, Any]]:
    """The nodes of a graph and of the subgraphs in it, without those that stand for a subgraph."""
    definitions = graph.get("definitions", {}).get("subgraphs", ())
    for part in (graph, *definitions):
        yield from (node for node in part["nodes"] if node["type"] not in {each["id"] for each in definitions})


def with_surroundings(blueprint: Graph) -> Graph:
    """A blueprint's node that gets what it needs, on small pictures, and whose outputs are used; for the converter."""
    nodes, links = blueprint["nodes"], blueprint["links"]
    (node,) = nodes

    def link(origin: int, slot: int) -> int:
        links.append([len(links) + 1, origin, slot, None, None, "*"])
        return len(links)

    def add(number: int, kind: str, values: list[Any], **inputs: tuple[int, int]) -> None:
        slots = [{"name": name, "type": "*", "link": link(*source)} for name, source in inputs.items()]
        nodes.append({"id": number, "type": kind, "inputs": slots, "widgets_values": values})

    add(MODEL, "CheckpointLoaderSimple", ["v1-5-pruned-emaonly-fp16.safetensors"])
    widgets = [slot["name"] for slot in node["inputs"] if slot.get("widget")]
    values = dict(zip(widgets, node["widgets_values"], strict=True))
    node["widgets_values"] = [VALUES.get(name, value) for name, value in values.items()]
    for index, slot in enumerate(node["inputs"]):
        if slot["type"] in OF_CHECKPOINT:
            slot["link"] = link(MODEL, OF_CHECKPOINT.index(slot["type"]))
        elif slot["type"] in ("IMAGE", "MASK") and slot.get("shape") != 7:
            add(200 + index, "LoadImage", [PICTURES.get(slot["name"], "small_refattention_two_cups.jpg"), "image"])
            slot["link"] = link(200 + index, int(slot["type"] == "MASK"))
    for index, slot in enumerate(list(node["outputs"])):
        source = (node["id"], index)
        if slot["type"] == "MODEL":
            add(TEXT, "CLIPTextEncode", ["a saucer"], clip=(MODEL, 1))
            add(LATENT, "EmptyLatentImage", [128, 96, 1])
            samples = {"model": source, "positive": (TEXT, 0), "negative": (TEXT, 0), "latent_image": (LATENT, 0)}
            add(SAMPLER, "KSampler", [1, "fixed", 1, 2.0, "euler", "normal", 1.0], **samples)
            add(DECODER, "VAEDecode", [], samples=(SAMPLER, 0), vae=(MODEL, 2))
            source = (DECODER, 0)
        kind = {"MASK": "MaskPreview", "STRING": "PreviewAny"}.get(slot["type"], "PreviewImage")
        add(300 + index, kind, [], **{{"MaskPreview": "mask", "PreviewAny": "source"}.get(kind, "images"): source})
    return blueprint
