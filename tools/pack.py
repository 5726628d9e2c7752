"""Makes the host's modules and the pack's importable for a tool that runs in ComfyUI's Python environment."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

PACK = Path(__file__).resolve().parent.parent


def import_pack(cpu: bool = True) -> None:
    """Puts ComfyUI on the path and gives the pack the name `refattention`.

    COMFYUI_DIR names the folder of a ComfyUI that is not in custom_nodes/../..
    """
    places = [os.environ.get("COMFYUI_DIR", ""), str(PACK.parent.parent), str(PACK / ".host" / "ComfyUI")]
    host = next((Path(place) for place in places if place and (Path(place) / "main.py").is_file()), None)
    if host is None:
        sys.exit("No ComfyUI found: set COMFYUI_DIR to its folder.")
    sys.path[:] = [str(host), *(path for path in sys.path if Path(path or ".").resolve() != PACK)]
    package = ModuleType("refattention")
    package.__path__ = [str(PACK)]
    sys.modules["refattention"] = package
    import comfy.cli_args

    comfy.cli_args.args.cpu = cpu


def run_extension(path: Path) -> bool:
    """Runs a Python file that makes more models known to ComfyUI; False if it is none."""
    spec = importlib.util.spec_from_file_location(path.stem, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        return False
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return True
