"""The `comfy` command line accepts the pack and its workflow files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from archive import unpack_into

from host import ROOT, HeadlessHost

pytestmark = pytest.mark.e2e
FILES = sorted((ROOT / "workflows").rglob("*.json"))
Comfy = Callable[..., Any]


@pytest.fixture(scope="module")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    """Runs a command in this process: starting Python for each would take minutes. Its settings go elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "XDG_CONFIG_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp("home")))
        patch.setenv("DO_NOT_TRACK", "1")
        patch.chdir(ROOT)
        from comfy_cli.cmdline import app
        from typer.testing import CliRunner

        yield lambda *arguments: CliRunner().invoke(app, ["--skip-prompt", *map(str, arguments)])


def at(host: HeadlessHost) -> list[str]:
    return ["--host", "127.0.0.1", "--port", str(host.port)]


def test_pack_passes_the_registrys_checks(comfy: Comfy) -> None:
    result = comfy("node", "validate")
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def object_info(host: HeadlessHost, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the host knows of its nodes, as if it had the models of all workflows."""
    info = host.object_info()
    nodes = [node for path in FILES if "api" in path.parts for node in json.loads(path.read_text("utf-8")).values()]
    for node in nodes:
        for name, value in node["inputs"].items():
            if str(value).endswith(".safetensors"):
                kind, *options = info[node["class_type"]]["input"]["required"][name]
                # A list in place of the type is the older way to write a combo.
                (kind if isinstance(kind, list) else options[0].get("options", [])).append(value)
    path = tmp_path_factory.mktemp("info") / "object_info.json"
    path.write_text(json.dumps(info), encoding="utf-8")
    return path


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(ROOT / "workflows")))
def test_validate(object_info: Path, comfy: Comfy, file: Path) -> None:
    result = comfy("workflow", "validate", "--workflow", file, "--input", object_info)
    assert result.exit_code == 0 and '"valid": true' in result.output, result.output


def test_validate_sees_a_mistake(
    host: HeadlessHost, comfy: Comfy, small_workflow: dict[str, Any], tmp_path: Path
) -> None:
    for node in small_workflow.values():
        if node["class_type"] == "RefDropApply":
            del node["inputs"]["model"]
    (tmp_path / "workflow.json").write_text(json.dumps(small_workflow), encoding="utf-8")
    assert comfy("workflow", "validate", "--workflow", tmp_path / "workflow.json", *at(host)).exit_code != 0


def test_run(host: HeadlessHost, comfy: Comfy, small_workflow: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "workflow.json").write_text(json.dumps(small_workflow), encoding="utf-8")
    result = comfy("run", "--workflow", tmp_path / "workflow.json", "--wait", *at(host))
    assert result.exit_code == 0, result.output


def test_archive_holds_what_users_need(tmp_path: Path) -> None:
    program = tmp_path / "unpacked"
    unpack_into(program, tmp_path)
    files = {path.relative_to(program).as_posix(): path.stat().st_size for path in program.rglob("*") if path.is_file()}
    assert {"__init__.py", "pyproject.toml", "LICENSE", "README.md", "requirements.txt"} <= files.keys()
    assert {"tools/run_workflow.py", "tools/batch/run.py", "tools/host_process.py", "tools/workflow.py"} <= files.keys()
    assert {"tools/subgraphs.py", "subgraphs/Follow a Picture (RefDrop).json"} <= files.keys()
    assert {"workflows/refdrop.json", "workflows/refdrop.jpg", "web/docs/RefDropApply.md"} <= files.keys()
    assert {"workflows/pictures/refattention_photo.jpg", "workflows/pictures/CREDITS.md"} <= files.keys()
    assert not [name for name in files if name.split("/")[0] in ("tests", "demo", "bench", "requirements", ".host")]
    assert max(files.values()) < 1 << 20 and sum(files.values()) < 8 << 20
    command = [sys.executable, str(program / "tools" / "run_workflow.py"), "--help"]
    assert "node.input" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
