"""Training of the demo world's models. `make world-train` runs it; `README.md` says how it is resumed."""

import sys
from pathlib import Path
from types import ModuleType

# The demo's package under the name that it has in the tests, without the demo's node pack around it
if "refattention_demo" not in sys.modules:
    sys.modules["refattention_demo"] = ModuleType("refattention_demo")
    sys.modules["refattention_demo"].__path__ = [str(Path(__file__).resolve().parents[2] / "demo")]
