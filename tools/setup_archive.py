"""Takes one folder out of a source archive without trusting the archive's paths."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath

from setup_run import SetupError


def extract_tree(archive: Path, prefix: str, target: Path) -> None:
    """Writes the regular files below `prefix` to `target`; links, devices and paths that lead outside are refused.

    Raises: SetupError when the archive holds something else than expected.
    """
    inside = PurePosixPath(prefix)
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if inside not in path.parents or member.isdir():
                continue
            if not member.isfile() or ".." in path.parts:
                raise SetupError(f"{archive.name} holds an unsafe entry, {member.name}; do not use this file.")
            file = target.joinpath(*path.relative_to(inside).parts)
            file.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            if source is not None:
                with source, open(file, "wb") as out:
                    shutil.copyfileobj(source, out)
    if not (target / "main.py").is_file():
        raise SetupError(f"{archive.name} holds no ComfyUI under {prefix}; the pinned version does not fit this tool.")
