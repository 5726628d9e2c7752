"""Published workflows in this process, without a server: each node once, in the order of the file's links.

Models of the demo, and where it has none a tiny one of the family, with texts and a VAE that fit.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import editing
import folder_paths
import mixed
import pytest
import torch
from families import tiny_model, tiny_prompt
from p3s_support import write_p3s_adapter
from refattention.nodes import RefAttentionExtension
from refattention_demo.configs import register
from refattention_demo.other_packs import NODES
from refine_adapter import write_refine_adapter

import nodes
from demo_host import write_input, write_models

Loaded = dict[tuple[Any, ...], tuple[Any, ...]]
# Modules of ComfyUI with nodes that the workflows have, with an entry point and without one
EXTRAS = ("canny", "custom_sampler", "flux", "hunyuan", "images", "lt", "mask", "post_processing", "qwen", "sd3")
OLD_EXTRAS = ("model_advanced", "preview_any", "video_model")
# Where the demo has no model: what the workflow's file begins with -> the family of the tiny one
FAMILY_OF = {
    **{"flux1": "flux", "flux2": "flux2", "wan2.1": "wan21", "svd": "svd", "qwen_image": "qwen", "Chroma": "chroma"},
    **{"hunyuan": "hunyuan", "ltx": "ltxv", "sd3.5": "sd35", "z_image": "zimage", "sam3": "sd15"},
}
MODEL_FILES = ("unet_name", "ckpt_name")
# Other values than `mixed` has, by the class of the node
CHANGED: dict[str, dict[str, Any]] = {
    "AttentionProbe": {"layers": "output.10, output.11"},
    "LeffaDensePose": {"run_code_of_file": True},
    "RefineByAlign": {"minimum_contrast": 0.0},
}


@functools.cache
def _classes() -> dict[str, Any]:
    """Of ComfyUI's own nodes, of the pack's, and those that stand for other packs', by their ids."""

    async def listed() -> list[Any]:
        extras = [await importlib.import_module(f"comfy_extras.nodes_{name}").comfy_entrypoint() for name in EXTRAS]
        return [one for each in (*extras, RefAttentionExtension()) for one in await each.get_node_list()]

    found = dict(nodes.NODE_CLASS_MAPPINGS)
    for name in OLD_EXTRAS:
        found |= importlib.import_module(f"comfy_extras.nodes_{name}").NODE_CLASS_MAPPINGS
    return {**found, **{one.define_schema().node_id: one for one in (*asyncio.run(listed()), *NODES)}}


def write_files(base: Path) -> None:
    """Writes the demo's models, and the pictures that workflows load."""
    write_models(base / "models")
    write_refine_adapter(base / "models" / "model_patches" / "refine_align.safetensors")
    write_p3s_adapter(base / "models" / "model_patches" / "p3s" / "cup_00001_.safetensors")
    for folder in ("input", "output", "temp"):
        (base / folder).mkdir()
    write_input(base / "input")
    mixed.write_small_pictures(base / "input")


def use_files(base: Path, patch: pytest.MonkeyPatch) -> None:
    """Has ComfyUI find what was written, for as long as the patch."""
    register()
    known = {**folder_paths.folder_names_and_paths}
    for folder in (base / "models").iterdir():
        known[folder.name] = ([str(folder)], known[folder.name][1])
    patch.setattr(folder_paths, "folder_names_and_paths", known)
    for folder in ("input", "output", "temp"):
        patch.setattr(folder_paths, f"{folder}_directory", str(base / folder))


class WorkflowHere:
    """A workflow of `workflows/api` at a small size, with one step.

    Args:
        loaded: what loaders gave to other workflows, which take it from there as in ComfyUI; more comes to it.
    """

    def __init__(self, name: str, loaded: Loaded) -> None:
        self._graph = mixed.small(name)
        for node in self._graph.values():
            node["inputs"] |= {"steps": 1} if "steps" in node["inputs"] else {}
        self._stand_ins = _stand_ins(self._graph)
        self._loaded = loaded

    def run(self, place: Callable[[Any], None]) -> dict[str, tuple[Any, ...]]:
        """What each node gave.

        Args:
            place: is called with each output, before the next node takes it.
        """
        given: dict[str, tuple[Any, ...]] = {}

        def value(one: Any) -> Any:
            return outputs(one[0])[one[1]] if isinstance(one, list) and one and one[0] in self._graph else one

        def outputs(node: str) -> tuple[Any, ...]:
            if node not in given:
                kind, inputs = self._graph[node]["class_type"], self._graph[node]["inputs"]
                values = {key: value(each) for key, each in {**inputs, **CHANGED.get(kind, {})}.items()}
                with torch.inference_mode():  # as ComfyUI runs nodes
                    given[node] = self._stand_ins.get(kind) or self._outputs(kind, values)
                for each in given[node]:
                    place(each)
            return given[node]

        for node in self._graph:
            outputs(node)
        return given

    def _outputs(self, kind: str, values: dict[str, Any]) -> tuple[Any, ...]:
        if "Loader" not in kind:
            return _called(_classes()[kind], values)
        key = kind, *sorted(values.items())
        if key not in self._loaded:
            self._loaded[key] = _called(_classes()[kind], values)
        return self._loaded[key]


def _called(node: Any, values: dict[str, Any]) -> tuple[Any, ...]:
    if hasattr(node, "define_schema"):
        return tuple(node.execute(**_grouped(values)).args)
    out = getattr(node(), node.FUNCTION)(**values)
    return out.get("result", ()) if isinstance(out, dict) else tuple(out)


def _grouped(values: dict[str, Any]) -> dict[str, Any]:
    """Inputs of which a node has as many as are connected come as one: `a.b` as `b` of `a`."""
    grouped: dict[str, Any] = {}
    for name, value in values.items():
        group, _, member = name.partition(".")
        if member:
            grouped.setdefault(group, {})[member] = value
        else:
            grouped[name] = value
    return grouped


def _stand_ins(graph: mixed.Workflow) -> dict[str, tuple[Any, ...]]:
    """What loaders give, by their classes; empty where the demo has the models."""
    files = [str(node["inputs"][key]) for node in graph.values() for key in MODEL_FILES if key in node["inputs"]]
    families = [family for start, family in FAMILY_OF.items() for file in files if file.startswith(start)]
    if not families:
        return {}
    (family,) = families
    model, codec, text = tiny_model(family), editing.AnyCodec(family), _Text(family)
    vision = SimpleNamespace(encode_image=lambda *_, **__: SimpleNamespace(image_embeds=torch.ones(1, 24)))
    return {
        **{"UNETLoader": (model,), "VAELoader": (codec,), "CheckpointLoaderSimple": (model, text, codec)},
        **{"CLIPLoader": (text,), "DualCLIPLoader": (text,), "ImageOnlyCheckpointLoader": (model, vision, codec)},
        "SAM3_Detect": (torch.ones(1, mixed.SMALL["height"], mixed.SMALL["width"]),),
    }


class _Text:
    """Random text features, for each text others."""

    def __init__(self, family: str) -> None:
        self._family = family

    def tokenize(self, text: str, **options: Any) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> list[Any]:
        return tiny_prompt(self._family, len(tokens))
