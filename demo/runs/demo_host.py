"""The host of the demo: the pack, the demo models beside it, their checkpoint files and the photographs."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from host import PACK_NAME, ROOT, HeadlessHost

DEMO_PACK = "RefAttention-Demo"
DEMO_PACKAGE = "refattention_demo"
PHOTOS = ROOT / "workflows" / "pictures"
PHOTO = PHOTOS / "refattention_photo.jpg"
API_WORKFLOWS = ROOT / "workflows" / "api"


def demo_host(base: Path | None = None, port: int | None = None) -> HeadlessHost:
    """A host, not yet started, on which the pack's workflows queue without a change."""
    host = HeadlessHost({PACK_NAME: ROOT, DEMO_PACK: ROOT / "demo"}, base, port=port)
    write_models(host.base / "models")
    write_input(host.base / "input")
    return host


def write_input(folder: Path) -> None:
    """Puts the pictures that the workflows load into a folder, some of them smaller than the pack does at its start."""
    demo_module("tryon").write_pictures(folder)
    for photo in sorted(PHOTOS.glob("refattention_*")):
        if not (folder / photo.name).exists():
            shutil.copyfile(photo, folder / photo.name)


def write_models(models: Path) -> None:
    """Writes the demo models under the names that the workflows have; files that are there stay."""
    weights = demo_module("weights")
    weights.write_checkpoints(models / "checkpoints")
    weights.write_vision_encoder(models / "clip_vision")
    weights.write_controlnet(models / "controlnet")
    weights.write_deadiff(models / "model_patches")
    demo_module("leffa").write_checkpoints(models / "diffusion_models")
    demo_module("densepose").write(models / "detection")


def demo_module(name: str) -> ModuleType:
    """A module of the demo, imported without the demo's node pack around it."""
    if DEMO_PACKAGE not in sys.modules:
        package = ModuleType(DEMO_PACKAGE)
        package.__path__ = [str(ROOT / "demo")]
        sys.modules[DEMO_PACKAGE] = package
    return importlib.import_module(f"{DEMO_PACKAGE}.{name}")


def load_workflow(name: str = "refdrop") -> dict[str, Any]:
    """A published workflow in API format."""
    workflow: dict[str, Any] = json.loads((API_WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    return workflow


def new_node(class_type: str, title: str = "", **values: Any) -> dict[str, Any]:
    """A node of an API workflow."""
    return {"class_type": class_type, "inputs": values, "_meta": {"title": title or class_type}}


def load_batch(workflow: dict[str, Any], name: str, files: Sequence[str], title: str = "") -> None:
    """Adds nodes that load pictures of one size, or puts them in place of one; the one called `name` gives them all."""
    names = [name] if len(files) == 1 else [f"{name} {number}" for number in range(len(files))]
    for loaded, file in zip(names, files, strict=True):
        workflow[loaded] = new_node("LoadImage", title, image=file)
    batch, *others = names
    for number, other in enumerate(others, 1):
        joined = name if number == len(others) else f"{name} to {number}"
        workflow[joined] = new_node("ImageBatch", title, image1=[batch, 0], image2=[other, 0])
        batch = joined


def set_inputs(workflow: dict[str, Any], class_type: str, **values: Any) -> dict[str, Any]:
    """A copy of an API workflow with other input values on every node of one class.

    Raises: KeyError when there is no such node or it has no such input.
    """
    copy: dict[str, Any] = json.loads(json.dumps(workflow))
    chosen = [node for node in copy.values() if node["class_type"] == class_type]
    for node in chosen:
        unknown = values.keys() - node["inputs"].keys()
        if unknown:
            raise KeyError(f"{class_type} has no input {', '.join(sorted(unknown))} in this workflow")
        node["inputs"].update(values)
    if not chosen:
        raise KeyError(f"The workflow has no {class_type} node")
    return copy
