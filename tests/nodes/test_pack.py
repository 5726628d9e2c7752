"""The pack as the host's own loader sees it."""

from __future__ import annotations

import ast
import asyncio
import inspect
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import folder_paths
import pytest
from bootstrap import HOST, ROOT
from refattention.nodes.template_pictures import PICTURES, put_pictures

NODE_IDS = {
    "RefDropApply",
    "RefDropVideo",
    "RefDropRecord",
    "RefDropSave",
    "RefDropLoad",
    "PointMask",
    "P3SInject",
    "P3STrain",
    "P3SSave",
    "P3SLoad",
    "DEADiffLoader",
    "DEADiffStyle",
    "DEADiffSampler",
    "DEADiffEulerSampler",
    "DEADiffExtract",
    "LeffaLoader",
    "LeffaTryOn",
    "LeffaPoseTransfer",
    "LeffaMask",
    "LeffaRepaint",
    "LeffaFlow",
    "LeffaBodyMap",
    "LeffaDensePose",
    "LeffaSigmas",
    "LeffaFit",
    "RefineByAlign",
    "RefineAlign",
    "RefineRegion",
    "RefineAlignLoad",
    "AttentionProbe",
}


@pytest.fixture(scope="module")
def host_nodes(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The host's `nodes` module after it loaded the pack from a custom_nodes folder."""
    import nodes

    assert Path(nodes.__file__).parent == HOST
    pictures, own = tmp_path_factory.mktemp("input"), folder_paths.get_input_directory()
    folder_paths.set_input_directory(str(pictures))
    pack = tmp_path_factory.mktemp("custom_nodes") / "ComfyUI-RefAttention"
    pack.symlink_to(ROOT)
    core = set(nodes.NODE_CLASS_MAPPINGS)
    assert asyncio.run(nodes.load_custom_node(str(pack)))
    folder_paths.set_input_directory(own)
    nodes.pack_ids = set(nodes.NODE_CLASS_MAPPINGS) - core
    return nodes


def test_the_host_loads_exactly_our_nodes(host_nodes: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    assert host_nodes.pack_ids == NODE_IDS
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert host_nodes.EXTENSION_WEB_DIRS["ComfyUI-RefAttention"].endswith("web")


@pytest.mark.parametrize("node_id", sorted(NODE_IDS))
def test_schema(host_nodes: ModuleType, node_id: str) -> None:
    schema = host_nodes.NODE_CLASS_MAPPINGS[node_id].GET_SCHEMA()
    assert schema.display_name and schema.description and schema.search_aliases
    for item in (*schema.inputs, *schema.outputs):
        assert item.tooltip and len(item.tooltip) > 20, item
    parameters = inspect.signature(host_nodes.NODE_CLASS_MAPPINGS[node_id].execute).parameters
    assert set(parameters) == {item.id for item in schema.inputs}
    widgets = [i for i in schema.inputs if hasattr(i, "default") and i.default is not None and not i.advanced]
    assert len(widgets) <= 5


@pytest.mark.parametrize("node_id", sorted(NODE_IDS))
def test_help_page(node_id: str) -> None:
    folder = ROOT / "web" / "docs"
    text = (folder / f"{node_id}.md").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert len(text) > 500
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", text)
    assert pictures and all((folder / picture).is_file() for picture in pictures)


def test_importing_the_pack_imports_nothing_else() -> None:
    code = (
        "import importlib.util, sys; before = set(sys.modules);"
        f"spec = importlib.util.spec_from_file_location('pack', {str(ROOT / '__init__.py')!r});"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module);"
        "print(sorted(name for name in set(sys.modules) - before if name.split('.')[0] in ('torch', 'comfy', 'numpy')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_loading_the_nodes_imports_nothing_heavy() -> None:
    """Speed itself is measured by the benchmark; what takes long are these libraries, if the host has not them yet."""
    code = (
        "import bootstrap, sys; bootstrap.name_packages(); bootstrap.prepare_host();"
        "import nodes, comfy_api.latest; before = set(sys.modules); import refattention.nodes;"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before} - {'refattention'}))"
    )
    paths = [str(ROOT / "tests" / "support"), str(ROOT / "tools")]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import sys; sys.path[:0] = {paths!r}; {code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_readme_says_where_each_node_is(host_nodes: ModuleType) -> None:
    listed = {
        node: row.rsplit("|", 2)[1].strip()
        for row in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
        for node in re.findall(r"\(web/docs/(\w+)\.md\)", row)
        if row.startswith("| [")
    }
    assert listed == {name: host_nodes.NODE_CLASS_MAPPINGS[name].CATEGORY for name in NODE_IDS}
    assert {listed[name] for name in NODE_IDS if name.endswith(("Load", "Loader"))} == {"model/loaders"}


def test_pictures_that_are_there_stay(tmp_path: Path) -> None:
    """Those that are missing come; one of the user's under such a name, or a link to nowhere, is left alone."""
    names = sorted(path.name for path in PICTURES.glob("refattention_*"))
    (tmp_path / names[0]).write_bytes(b"mine")
    (tmp_path / names[1]).symlink_to(tmp_path / "nowhere")
    put_pictures(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == names and len(names) > 5
    assert (tmp_path / names[0]).read_bytes() == b"mine" and (tmp_path / names[1]).is_symlink()
    assert all((tmp_path / name).read_bytes() == (PICTURES / name).read_bytes() for name in names[2:])


def test_a_folder_that_cannot_be_written_to_is_said_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put_pictures(tmp_path / "missing")
    assert "pictures of its templates could not be put into" in caplog.text


def test_every_picture_of_a_template_is_shipped() -> None:
    for path in (ROOT / "workflows").rglob("*.json"):
        for name in re.findall(r'"([\w.-]+\.(?:jpg|png|webp))"', path.read_text(encoding="utf-8")):
            assert (PICTURES / name).is_file(), (
                f"{path.name} loads {name}, which is not in workflows/pictures (docs/developing.md says how to add one)"
            )


def texts(path: Path) -> Iterator[str]:
    """All strings of a module but its docstrings and the nodes' ids."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    ids = {each.value for each in ast.walk(tree) if isinstance(each, ast.keyword) and each.arg == "node_id"}
    docs = {each.value for each in ast.walk(tree) if isinstance(each, ast.Expr)}
    for each in ast.walk(tree):
        if isinstance(each, ast.Constant) and isinstance(each.value, str) and each not in ids | docs:
            yield each.value


def test_texts_name_nodes_as_the_search_shows_them() -> None:
    """Messages and tooltips say Leffa Body Map, never LeffaBodyMap."""
    ids = re.compile(rf"(?<![A-Za-z])({'|'.join(NODE_IDS)})(?![A-Za-z_])")
    found = [
        f"{path.relative_to(ROOT)}: {text}"
        for folder in ("core", "nodes")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for text in texts(path)
        if ids.search(text)
    ]
    for path in sorted((ROOT / "locales").rglob("nodeDefs.json")):
        words = re.findall(r'"(?:description|tooltip)": (".*")', path.read_text(encoding="utf-8"))
        found += [f"{path.parent.name}: {text}" for text in words if ids.search(text)]
    assert not found
