"""Files in ComfyUI's model folders: choosing those that are there, and new ones under the next free number."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable, Sequence

import folder_paths
from comfy_api.latest import io

OWN_FOLDERS = ("model_patches",)  # of what the pack's nodes and trainings write
DATES = {"year": "%Y", "month": "%m", "day": "%d", "hour": "%H", "minute": "%M", "second": "%S"}
SCRIPT_FOLDER = "detection"
TEXT_FOLDER = "text_encoders"


def model_names(folders: Sequence[str]) -> list[str]:
    """Names of the files in these model folders, those of the first folder first."""
    return list(dict.fromkeys(name for folder in folders for name in folder_paths.get_filename_list(folder)))


def model_path(name: str, folders: Sequence[str] = OWN_FOLDERS) -> str:
    """Where a file is that `model_names` listed.

    Raises:
        FileNotFoundError: it is in none of the folders.
    """
    for folder in folders:
        if path := folder_paths.get_full_path(folder, name):
            return path
    raise FileNotFoundError(f"There is no file '{name}' in {' or '.join(f'models/{folder}' for folder in folders)}.")


def file_input(name: str, tooltip: str, folders: Sequence[str] = OWN_FOLDERS) -> io.Input:
    """The choice of a file in these model folders."""
    return io.Combo.Input(name, options=model_names(folders), tooltip=tooltip)


def time_of_change(name: str) -> float:
    """By which a loader sees that a file of the pack's own was replaced."""
    return os.path.getmtime(model_path(name))


def prefix_input(default: str) -> io.Input:
    """`filename_prefix` of a node that saves."""
    return io.String.Input(
        "filename_prefix",
        default=default,
        tooltip="Folder below models/model_patches and beginning of the name; a number and .safetensors follow. "
        "%year%, %month% and %day% stand for the date.",
    )


def prefix_fault(prefix: str | None) -> bool | str:
    """For `validate_inputs`: what is wrong with a prefix, or True; linked text, None, is seen only later."""
    try:
        if prefix is not None:
            below_root(prefix)
    except ValueError as error:
        return str(error)
    return True


def save_own(save: Callable[[str], None], prefix: str) -> str:
    """Saves a file in models/model_patches, as of `save_numbered`, and returns the name that loaders list."""
    root = folder_paths.get_folder_paths(OWN_FOLDERS[0])[0]
    return os.path.relpath(save_numbered(save, root, prefix), root)


def saved_output(name: str) -> io.NodeOutput:
    """The output of a node that saved a file; whoever queued the workflow is told of it, too."""
    folder, _, file = name.replace(os.sep, "/").rpartition("/")
    return io.NodeOutput(name, ui={"files": [{"filename": file, "subfolder": folder, "type": OWN_FOLDERS[0]}]})


def save_numbered(save: Callable[[str], None], root: str, prefix: str) -> str:
    """Saves a .safetensors file below a folder under the next free number and returns its path.

    Args:
        save: writes a new file; raises FileExistsError if there is one already.
        prefix: folders and beginning of the name, as of `below_root`.

    Raises:
        ValueError: as of `below_root`.
        RuntimeError: the folder cannot be written to, or what `save` raises.
    """
    folder, name = os.path.split(os.path.join(root, below_root(prefix)))
    numbered = re.compile(re.escape(name) + r"_(\d+)_\.", re.IGNORECASE)
    try:
        os.makedirs(folder, exist_ok=True)
        numbers = [int(found[1]) for each in os.listdir(folder) if (found := numbered.match(each))]
    except OSError as error:
        raise RuntimeError(f"The folder of '{prefix}' in {root} cannot be used: {error}.") from error
    for number in itertools.count(max(numbers, default=0) + 1):
        path = os.path.join(folder, f"{name}_{number:05}_.safetensors")
        try:
            save(path)
            break
        except FileExistsError:  # someone else has just taken the number
            continue
    return path


def below_root(prefix: str) -> str:
    """A prefix in its plain form, with its date filled in; follows links, which the user has made.

    Raises:
        ValueError: it names no file, or leads out of the folder that it starts from.
    """
    for word, code in DATES.items():
        prefix = prefix.replace(f"%{word}%", time.strftime(code))
    plain = os.path.normpath(prefix)
    is_absolute = os.path.isabs(plain) or os.path.splitdrive(plain)[0]
    if is_absolute or plain.split(os.sep)[0] in (os.pardir, os.curdir) or not os.path.basename(prefix):
        raise ValueError(f"filename_prefix must name a file below models/model_patches, but is '{prefix}'.")
    return plain


def vocabulary_path() -> str:
    """BERT's vocabulary in models/text_encoders: the first file whose name ends in vocab.txt.

    Raises:
        FileNotFoundError: there is none.
    """
    for folder in filter(os.path.isdir, folder_paths.get_folder_paths(TEXT_FOLDER)):
        for name in sorted(folder_paths.recursive_search(folder)[0]):  # ComfyUI's own lists leave out such files
            if name.endswith("vocab.txt"):
                return os.path.join(folder, name)
    raise FileNotFoundError(
        f"subject needs BERT's vocabulary, but there is no vocab.txt in models/{TEXT_FOLDER}. Download vocab.txt of "
        f"google-bert/bert-base-uncased from Hugging Face to models/{TEXT_FOLDER}/bert-base-uncased."
    )


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
