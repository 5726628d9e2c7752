"""Files in the host's model folders."""

from __future__ import annotations

import os
from collections.abc import Sequence

import folder_paths

SCRIPT_FOLDER = "detection"


def model_names(folders: Sequence[str]) -> list[str]:
    """Names of the files in these model folders, those of the first folder first."""
    return list(dict.fromkeys(name for folder in folders for name in folder_paths.get_filename_list(folder)))


def model_path(name: str, folders: Sequence[str]) -> str:
    """Where a file is that `model_names` listed.

    Raises:
        FileNotFoundError: it is in none of the folders.
    """
    for folder in folders:
        if path := folder_paths.get_full_path(folder, name):
            return path
    raise FileNotFoundError(f"There is no file '{name}' in {' or '.join(f'models/{folder}' for folder in folders)}.")


def script_names() -> list[str]:
    """TorchScript files in models/detection, and those that comfyui_controlnet_aux has downloaded."""
    return list(_scripts())


def script_path(name: str) -> str:
    """Where a file is that `script_names` listed.

    Raises:
        FileNotFoundError: it is not there.
    """
    path = _scripts().get(name)
    if path is None:
        raise FileNotFoundError(
            f"There is no file '{name}' in models/{SCRIPT_FOLDER}, nor where comfyui_controlnet_aux keeps its files."
        )
    return path


def _scripts() -> dict[str, str]:
    """Name -> path. ComfyUI's own lists leave out files with this ending."""
    downloaded = os.environ.get("AUX_ANNOTATOR_CKPTS_PATH", "")  # set by comfyui_controlnet_aux
    folders = [*folder_paths.get_folder_paths(SCRIPT_FOLDER), *([downloaded] if downloaded else [])]
    found: dict[str, str] = {}
    for folder in filter(os.path.isdir, folders):
        names = folder_paths.filter_files_extensions(folder_paths.recursive_search(folder)[0], [".torchscript"])
        for name in names:
            found.setdefault(os.path.basename(name) if folder == downloaded else name, os.path.join(folder, name))
    return found
