"""An extension of a training's configuration: makes the demo models known to ComfyUI."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

if "refattention_demo" not in sys.modules:
    package = ModuleType("refattention_demo")
    package.__path__ = [str(Path(__file__).resolve().parent)]
    sys.modules["refattention_demo"] = package

from refattention_demo.configs import register

register()
