"""Runs mypy on the pack and on the tools.

The pack's folder is a package whose name may hold a hyphen, which mypy refuses. So it is checked through a
link with an importable name, and the tools, which are scripts beside each other, by themselves.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "refattention"
PACKAGES = ("core", "nodes", "demo")


def mypy(arguments: list[str], folder: Path) -> int:
    """Exit status of mypy with the project's settings, run in `folder`."""
    settings = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    return subprocess.run([sys.executable, "-m", "mypy", *settings, *arguments], cwd=folder).returncode


def main() -> int:
    """Checks all; the exit status is not 0 when either has a finding."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, NAME).symlink_to(ROOT, target_is_directory=True)
        present = [name for name in PACKAGES if (ROOT / name / "__init__.py").exists()]
        pack = mypy([f"{NAME}/__init__.py", *(f"{NAME}/{name}" for name in present)], Path(folder))
    # Scripts lie beside each other and import by bare names. What trains the world is left out: torch's types know no
    # memory formats of modules.
    scripts = mypy(["tools", "demo/runs", *map(str, sorted((ROOT / "dev").glob("*.py")))], ROOT)
    return max(pack, scripts)


if __name__ == "__main__":
    sys.exit(main())
