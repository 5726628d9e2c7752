"""A ComfyUI with the pack as it is published, the models, and nothing else: every template finds what it needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from archive import unpack_into
from graphs import TEMPLATES, nodes_of, read
from mixed import SMALL, set_small
from PIL import Image
from refine_adapter import write_refine_adapter

from demo_host import DEMO_PACK, write_models
from host import PACK_NAME, ROOT, HeadlessHost, WorkflowError
from workflow import ui_to_api

pytestmark = pytest.mark.e2e
PICTURES = ROOT / "workflows" / "pictures"
QUICK = SMALL | {"width": 272, "height": 208}  # some templates have a point in the picture that they make
LARGE = 768, 1024  # pixels, which take too long on a CPU
# What stops a template of whose models the demo has no stand-in: its empty file, or the question before a file's code.
STOPS = r"\(\w*Loader\w*\): |switch run_code_of_file on"


@pytest.fixture(scope="module")
def bare_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeadlessHost]:
    """Besides the models it has the code that makes ComfyUI know such small ones, and stand-ins for other packs."""
    pack = tmp_path_factory.mktemp("packed") / PACK_NAME
    unpack_into(pack, tmp_path_factory.mktemp("scratch"))
    packs = {PACK_NAME: pack, DEMO_PACK: ROOT / "demo"}
    host = HeadlessHost(packs, tmp_path_factory.mktemp("bare-host"))
    models = host.base / "models"
    write_models(models)
    write_refine_adapter(models / "model_patches" / "refine_align.safetensors")
    for path in map(models.joinpath, {name for template in TEMPLATES.values() for name in models_of(template)}):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert not list((host.base / "input").iterdir())
    with host:
        yield host


def models_of(template: Path) -> set[str]:
    models = [model for node in nodes_of(read(template)) for model in node["properties"].get("models", [])]
    return {f"{model['directory']}/{model['name']}" for model in models}


def smaller(workflow: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same in less time: fewer steps, small results, and the large ones of its pictures smaller."""
    for node in workflow.values():
        inputs = node["inputs"]
        set_small(node, QUICK)
        if node["class_type"] == "LoadImage":
            path = folder / inputs["image"]
            with Image.open(path) as picture:
                if picture.size == LARGE:
                    picture.resize((96, 128), Image.Resampling.NEAREST).save(path)
    return workflow


def test_pictures_are_where_load_image_finds_them(bare_host: HeadlessHost) -> None:
    shipped = {path.name: path.read_bytes() for path in PICTURES.glob("refattention_*")}
    offered = bare_host.get("/object_info/LoadImage")["LoadImage"]["input"]["required"]["image"][0]
    assert set(offered) == set(shipped)
    assert sum(map(len, shipped.values())) < 1 << 20


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_runs(bare_host: HeadlessHost, name: str) -> None:
    """Each as the editor sends it. Where the demo has no stand-in of a model, reading its file is what fails."""
    workflow = ui_to_api(read(TEMPLATES[name]), bare_host.object_info())
    workflow = smaller(workflow, bare_host.base / "input")
    empty = [name for name in models_of(TEMPLATES[name]) if not (bare_host.base / "models" / name).stat().st_size]
    if empty:
        with pytest.raises(WorkflowError, match=STOPS):
            bare_host.run(workflow)
    else:
        assert bare_host.run(workflow)["outputs"]
