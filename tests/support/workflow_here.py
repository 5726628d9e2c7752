"""Published workflows in this process, without a server: each node once, in the order of the file's links."""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from bootstrap import ROOT
from refattention.nodes import RefAttentionExtension
from refattention_demo import leffa, tryon, weights
from refattention_demo.configs import register

import nodes

EXTRAS = ("mask", "post_processing")  # modules of ComfyUI with nodes that the workflows have
# At a size that a CPU does in seconds, by the class of the node
SMALL: dict[str, dict[str, Any]] = {
    "AttentionProbe": {"working_size": 64, "layers": "output.10, output.11"},
    "EmptyLatentImage": {"width": 64, "height": 64},
    "KSampler": {"steps": 2, "sampler_name": "euler"},
    "RefineByAlign": {"working_size": 64, "steps": 2, "minimum_contrast": 0.0, "layers": "output.10, output.11"},
}


@functools.cache
def _classes() -> dict[str, Any]:
    """Of ComfyUI's own nodes, and of the pack's, by their ids."""

    async def listed() -> list[Any]:
        extensions = [await importlib.import_module(f"comfy_extras.nodes_{name}").comfy_entrypoint() for name in EXTRAS]
        return [one for each in (*extensions, RefAttentionExtension()) for one in await each.get_node_list()]

    return {**nodes.NODE_CLASS_MAPPINGS, **{one.define_schema().node_id: one for one in asyncio.run(listed())}}


def write_files(base: Path) -> None:
    """Writes the demo's models, and the pictures that workflows load."""
    weights.write_checkpoints(base / "checkpoints")
    weights.write_vision_encoder(base / "clip_vision")
    weights.write_deadiff(base / "model_patches")
    leffa.write_checkpoints(base / "diffusion_models")
    for folder in ("input", "output", "temp"):
        (base / folder).mkdir()
    tryon.write_pictures(base / "input")
    for picture in (ROOT / "workflows" / "pictures").glob("refattention_*"):
        if not (base / "input" / picture.name).exists():
            shutil.copyfile(picture, base / "input" / picture.name)


def use_files(base: Path, patch: pytest.MonkeyPatch) -> None:
    """Has ComfyUI find what was written, for as long as the patch."""
    register()
    known = {**folder_paths.folder_names_and_paths}
    for folder in ("checkpoints", "clip_vision", "model_patches", "diffusion_models"):
        known[folder] = ([str(base / folder)], known[folder][1])
    patch.setattr(folder_paths, "folder_names_and_paths", known)
    for folder in ("input", "output", "temp"):
        patch.setattr(folder_paths, f"{folder}_directory", str(base / folder))


def run(name: str, place: Callable[[Any], None]) -> dict[str, tuple[Any, ...]]:
    """What each node of a workflow of `workflows/api` gave, at a small size.

    Args:
        place: is called with each output, before the next node takes it.
    """
    graph = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    given: dict[str, tuple[Any, ...]] = {}

    def value(one: Any) -> Any:
        return outputs(one[0])[one[1]] if isinstance(one, list) and one and one[0] in graph else one

    def outputs(node: str) -> tuple[Any, ...]:
        if node not in given:
            kind, inputs = graph[node]["class_type"], graph[node]["inputs"]
            small = {key: each for key, each in SMALL.get(kind, {}).items() if key in inputs}
            values = {key: value(each) for key, each in {**inputs, **small}.items()}
            with torch.inference_mode():  # as ComfyUI runs nodes
                given[node] = _called(_classes()[kind], values)
            for each in given[node]:
                place(each)
        return given[node]

    for node in graph:
        outputs(node)
    return given


def _called(node: Any, values: dict[str, Any]) -> tuple[Any, ...]:
    if hasattr(node, "define_schema"):
        return tuple(node.execute(**values).args)
    out = getattr(node(), node.FUNCTION)(**values)
    return out.get("result", ()) if isinstance(out, dict) else tuple(out)
