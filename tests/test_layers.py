"""Arrows point one way: nodes -> method -> what methods share -> kernels, and no method knows another.

Read from the imports, without importing anything.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

import pytest
from bootstrap import ROOT

STANDARD = set(sys.stdlib_module_names) | {"__future__"}
# What several methods share, from the floor upwards: pure tensor functions, then what binds them to ComfyUI.
SHARED = {"core/kernels", "core/patches", "core/models", "core/pictures"}
METHODS = ("refdrop", "p3s", "point_mask", "deadiff", "leffa", "refine_by_align")
LIBRARIES = STANDARD | {"torch", "comfy", "numpy", "PIL", "scipy", "safetensors"}
# What each folder may import: top-level packages, and folders of the pack.
ALLOWED = {
    "core/kernels": STANDARD | {"torch", "core/kernels"},
    "core/patches": STANDARD | {"torch", "comfy", "comfy_execution", "server", "core/patches", "core/kernels"},
    "core/models": STANDARD
    | {"torch", "comfy", "numpy", "PIL", "safetensors"}
    | {"core/models", "core/patches", "core/kernels"},
    "core/pictures": STANDARD | {"torch", "numpy", "PIL", "scipy", "cv2", "core/pictures", "core/kernels"},
    **{f"core/{method}": LIBRARIES | SHARED | {f"core/{method}"} for method in METHODS},
    "core": {"__future__"},
    "nodes": STANDARD
    | {"torch", "numpy", "comfy_api", "folder_paths", "nodes"}
    | (SHARED - {"core/kernels"})
    | {f"core/{method}" for method in METHODS},
    ".": {"__future__", "typing", "comfy_api", "nodes"},
}
# Refine-by-Align paints with RefDrop's guidance: the one arrow between methods.
ALLOWED["core/refine_by_align"] |= {"core/refdrop"}
# DensePose's file calls operators that torchvision registers.
ALLOWED["core/leffa"] |= {"torchvision"}
# The words that instruct DEADiff's network; ComfyUI needs the library itself.
ALLOWED["core/deadiff"] |= {"tokenizers"}
# The file of each method that holds its equations; torch alone, like the shared kernels.
KERNEL = STANDARD | {"torch", "core/kernels"}
FILES = [ROOT / "__init__.py", *sorted((ROOT / "nodes").rglob("*.py")), *sorted((ROOT / "core").rglob("*.py"))]


def layer_of(path: str) -> str:
    """The layer a file or folder of the pack belongs to: the longest name in ALLOWED that it starts with."""
    return max((name for name in ALLOWED if name == "." or f"{path}/".startswith(f"{name}/")), key=len)


def imports(source: str, package: list[str]) -> set[str]:
    """Imported top-level packages; for relative imports the layer, or the folder when it is none of the pack."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            target = base + (node.module or "").split(".") if node.module else base
            found |= {place("/".join([*target, name.name])) for name in node.names}
    return found


def place(path: str) -> str:
    first = path.split("/")[0]
    return layer_of(path) if first in {"nodes", "core"} else first


def check(source: str, package: list[str]) -> set[str]:
    """Imports that the layer of a package must not have."""
    return imports(source, package) - ALLOWED[layer_of("/".join(package))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports(path: Path) -> None:
    package = list(path.relative_to(ROOT).parent.parts)
    assert not check(path.read_text(encoding="utf-8"), package)


@pytest.mark.parametrize("method", METHODS)
def test_kernel_needs_torch_alone(method: str) -> None:
    source = (ROOT / "core" / method / "kernel.py").read_text(encoding="utf-8")
    assert not imports(source, ["core", method]) - KERNEL


def test_every_folder_has_a_law() -> None:
    assert {f"core/{path.name}" for path in (ROOT / "core").iterdir() if (path / "__init__.py").exists()} <= set(
        ALLOWED
    )


def test_no_two_modules_have_one_name() -> None:
    """Tests, tools and benchmarks put these folders on the path, in whatever order: the first would hide the second."""
    folders = [ROOT / each for each in ("tools", "dev", "demo/runs", "bench", "tests", "tests/support")]
    names = Counter(path.stem for folder in folders for path in folder.glob("*.py"))
    names.update(path.parent.name for folder in folders for path in folder.glob("*/__init__.py"))
    assert not [name for name, count in names.items() if count > 1]


@pytest.mark.parametrize(
    ("package", "line", "wrong"),
    [
        ("core/kernels", "import comfy.utils", "comfy"),
        ("core/kernels", "from ..patches import unet", "core/patches"),
        ("core/kernels", "from ..refdrop import kernel", "core/refdrop"),
        ("core/patches", "from ...nodes import refdrop", "nodes"),
        ("core/patches", "from ..refdrop.settings import RefDropSettings", "core/refdrop"),
        ("core/patches/families", "from ...models import vision", "core/models"),
        ("core/refdrop", "from ..deadiff.kernel import join", "core/deadiff"),
        ("core/refdrop", "from ..refine_by_align import observe", "core/refine_by_align"),
        ("core/leffa", "from ..refdrop.settings import RefDropSettings", "core/refdrop"),
        ("core/refdrop", "from ...nodes.refdrop import NODE", "nodes"),
        ("core/refdrop", "import cv2", "cv2"),
        ("core/patches", "import nodes", "nodes"),
        ("nodes", "from ..core.kernels.attention import Attend", "core/kernels"),
        ("nodes", "from ..demo import loading", "demo"),
        ("nodes", "import comfy.samplers", "comfy"),
        ("core", "import comfy", "comfy"),
    ],
)
def test_wrong_arrows_are_seen(package: str, line: str, wrong: str) -> None:
    assert check(line, package.split("/")) == {wrong}
    assert check("from __future__ import annotations", package.split("/")) == set()
