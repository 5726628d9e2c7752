"""The pack beside others, which must not change it. `make beside PACKS="FOLDER ..."` takes real ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixels import painted

from demo_host import demo_host
from host import PACK_NAME, HeadlessHost

pytestmark = pytest.mark.e2e

# What many packs do: functions of the host replaced for everybody, a node with a name of its own, a script in the page.
NEIGHBOUR = """
import comfy.ldm.modules.attention
import comfy.samplers

for module, name in ((comfy.samplers, "calc_cond_batch"), (comfy.ldm.modules.attention, "default")):
    theirs = getattr(module, name)

    def replaced(*args, _theirs=theirs, **kwargs):
        return _theirs(*args, **kwargs)

    setattr(module, name, replaced)


class NeighbourReference:
    CATEGORY, FUNCTION, RETURN_TYPES = "model/patch/reference", "patch", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def patch(self, model):
        return (model.clone(),)


NODE_CLASS_MAPPINGS = {"NeighbourReference": NeighbourReference}
WEB_DIRECTORY = "./web"
"""


def neighbours(folder: Path) -> list[Path]:
    """Folders of the packs that were named, else of one that is written here."""
    named = os.environ.get("REFATTENTION_BESIDE", "").split()
    if named:
        return [Path(name).resolve() for name in named]
    pack = folder / "neighbour"
    (pack / "web").mkdir(parents=True)
    (pack / "__init__.py").write_text(NEIGHBOUR, encoding="utf-8")
    (pack / "web" / "neighbour.js").write_text("export {};", encoding="utf-8")
    return [pack]


def own_nodes(host: HeadlessHost) -> dict[str, Any]:
    """What the host tells about the nodes that come from the pack."""
    info = host.object_info()
    return {name: node for name, node in info.items() if node["python_module"] == f"custom_nodes.{PACK_NAME}"}


def test_pack_is_the_same_beside_others(host: HeadlessHost, small_workflow: dict[str, Any], tmp_path: Path) -> None:
    others = neighbours(tmp_path)
    crowded = demo_host(tmp_path / "host")
    crowded.packs |= {folder.name.replace(".", "-"): folder for folder in others}
    with crowded:
        log = crowded.log()
        assert "IMPORT FAILED" not in log
        assert all(f"/custom_nodes/{name}\n" in log for name in crowded.packs)
        assert own_nodes(crowded) == own_nodes(host)
        np.testing.assert_array_equal(painted(crowded, small_workflow), painted(host, small_workflow))
