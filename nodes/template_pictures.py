"""The pictures that the templates load, put where Load Image finds them."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

from ..core.models.checkpoint import publish

PICTURES = Path(__file__).resolve().parent.parent / "workflows" / "pictures"


def put_pictures(folder: Path) -> None:
    """Copies those that are not in ComfyUI's input folder; a file of that name stays as it is, whatever it holds.

    Load Image lists that folder alone, without folders below it. Where it cannot be written to, the log says so.
    """
    missing = [path for path in sorted(PICTURES.glob("refattention_*")) if not (folder / path.name).exists()]
    if not missing:
        return
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as unfinished:
            for path in missing:
                _put(Path(shutil.copyfile(path, Path(unfinished) / path.name)), folder / path.name)
    except OSError as error:
        logging.warning(
            "RefAttention: the pictures of its templates could not be put into %s (%s). They are in %s.",
            folder,
            error,
            PICTURES,
        )


def _put(unfinished: Path, target: Path) -> None:
    try:
        publish(unfinished, target)
    except FileExistsError:  # another ComfyUI on this folder was faster, or it is a link to nowhere
        return
