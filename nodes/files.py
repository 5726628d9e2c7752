"""Files in the host's model folders."""

from __future__ import annotations

from collections.abc import Sequence

import folder_paths


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
