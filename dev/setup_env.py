"""Makes all a bare clone needs: `.venv`, the managed host in `.host/ComfyUI`, the pack linked into it.

Standard library only. A step leaves a stamp with the digest of its inputs and is skipped while the stamp
matches: a second call does nothing and needs no network, and one that was killed is repaired by the next.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from setup_host import (
    NOT_FROM_HOST,
    check_comfy,
    ensure_host,
    ensure_link,
    extra_requirements,
    requirement_lines,
)
from setup_run import STAMP, SetupError, run, set_aside, step

with suppress(ModuleNotFoundError):  # on Windows, where `check_python` says what to do
    import fcntl

ROOT = Path(__file__).resolve().parent.parent
UV = "uv==0.13.9"
OLDEST_PYTHON = (3, 10)
INCOMPLETE = "incomplete"


def check_python() -> None:
    """Refuses a system or interpreter that cannot make the environment, before anything is written."""
    if os.name == "nt":
        raise SetupError(
            "Developing needs Linux, or WSL on Windows. To use the pack on Windows nothing is to be set up."
        )
    if sys.version_info < OLDEST_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        raise SetupError(
            f"Python {found} is too old, 3.10 to 3.13 is needed. Name a newer one, for example "
            "`make setup PYTHON=python3.12`."
        )
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(
            f"{sys.executable} has no module {' and '.join(missing)}. Install it (Debian and Ubuntu: "
            "`apt install python3-venv`) or name another Python, `make setup PYTHON=...`."
        )


def can_be_kept(venv: Path) -> bool:
    """Whether an existing environment is whole, starts, and was made for this place."""
    stamp, python = venv / STAMP, venv / "bin" / "python"
    # An install that was cut short may leave half a package that looks installed; a copied or moved
    # environment has programs that start the interpreter of the old place.
    if stamp.exists() and not stamp.read_text().startswith(f"{venv}\n"):
        return False
    return python.exists() and run([python, "-m", "pip", "--version"], check=False, quiet=True) == 0


def ensure_venv(root: Path, extra: list[str]) -> None:
    """Creates `.venv` from the lock file, plus `extra` requirements of the user's own host."""
    venv, lock = root / ".venv", root / "requirements" / "lock.txt"
    python, stamp = venv / "bin" / "python", venv / STAMP
    inputs = "\n".join([UV, lock.read_text(encoding="utf-8"), *extra])
    done = f"{venv}\n{sha256(inputs.encode()).hexdigest()}\n"
    if python.exists() and stamp.exists() and stamp.read_text() == done:
        return
    check_python()
    if not can_be_kept(venv):
        if os.path.lexists(venv) and not stamp.exists():
            set_aside(venv)  # not made here
        step(f"creating {venv.name} with Python {sys.version.split()[0]}")
        run([sys.executable, "-m", "venv", "--clear", venv])
    stamp.write_text(INCOMPLETE)
    step(f"installing {UV}")
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", UV])
    step("installing the packages of requirements/lock.txt (several GB the first time)")
    run([python, "-m", "uv", "pip", "install", "--python", python, "--no-deps", "--require-hashes", "-r", lock])
    if extra:
        install_extra(python, lock, extra)
    stamp.write_text(done)


def install_extra(python: Path, lock: Path, extra: list[str]) -> None:
    """Installs what the user's own ComfyUI asks for, without touching the pinned torch."""
    step("installing what your ComfyUI asks for in addition")
    pins = [line for line in requirement_lines(lock) if NOT_FROM_HOST.match(line)]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "pins.txt")
        constraints.write_text("\n".join(pins), encoding="utf-8")
        run([python, "-m", "uv", "pip", "install", "--python", python, "-c", constraints, *extra])


def main() -> int:
    """Runs the steps that are not yet done; the exit status says whether everything is in place."""
    own_comfy = os.environ.get("COMFYUI_DIR", "")
    try:
        extra = extra_requirements(check_comfy(own_comfy), ROOT) if own_comfy else []
        # Two calls at the same time (`make -j`, two terminals) must not write one environment.
        with open(ROOT / "requirements" / "lock.txt", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            ensure_venv(ROOT, extra)
            if not own_comfy:
                ensure_host(ROOT)
                ensure_link(ROOT)
    except (SetupError, OSError) as error:
        print(f"setup failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
