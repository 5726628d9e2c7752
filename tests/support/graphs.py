"""Published files in the editor's format: templates, subgraph blueprints, and what their nodes ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from host import ROOT

Graph = dict[str, Any]
TEMPLATES = {path.stem: path for path in sorted((ROOT / "workflows").glob("*.json"))}
BLUEPRINTS = {path.stem: path for path in sorted((ROOT / "subgraphs").glob("*.json"))}
POINT = '[{"x": 20, "y": 57}]'
# What a test gives an input of a blueprint, and what it does with an output, as (class, output or input, widgets).
SOURCES = {
    **{"MODEL": (1, 0), "CLIP": (1, 1), "VAE": (1, 2)},
    **{"image": (2, 0), "mask": (2, 1), "person": (4, 0), "garment": (5, 0), "densepose": (6, 0), "parsing": (7, 0)},
}
PICTURES = {2: "garbled_cup.png", 3: "two_cups.jpg", 4: "person.jpg", 5: "garment.png", 6: "densepose.png"}
PICTURES |= {7: "parsing.png"}
