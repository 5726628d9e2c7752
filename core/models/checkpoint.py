"""Reading and writing checkpoint files: safely, and with one sentence that says what is wrong."""

from __future__ import annotations

import os
import pickle
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import comfy.utils
from safetensors import SafetensorError, safe_open
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]


def load(path: str | Path) -> dict[str, Tensor]:
    """Reads the named tensors of a checkpoint into the CPU's memory, never running code that a file carries.

    Args:
        path: a safetensors file, or one written by `torch.save`; wrappers such as {"state_dict": ...} are opened.

    Raises:
        RuntimeError: the file would run code, is damaged, does not hold named tensors, or has no room in memory; names
            the file.
    """
    name = Path(path).name
    try:
        state_dict = comfy.utils.load_torch_file(str(path), safe_load=True)
    except pickle.UnpicklingError as error:
        if re.search("unsupported (global|class)", str(error), re.IGNORECASE):
            raise RuntimeError(
                f"{name} holds Python objects that could run code on this computer, so it was not opened. "
                "Use a .safetensors file, or one saved with nothing but weights."
            ) from error
        raise _unreadable(name) from error
    except (FileNotFoundError, PermissionError):
        raise
    except (AttributeError, TypeError) as error:  # ComfyUI looked for names in something that has none
        raise _no_weights(name) from error
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise (_no_memory if _is_of_memory(error) else _unreadable)(name) from error
    if not isinstance(state_dict, dict) or not state_dict or not all(isinstance(key, str) for key in state_dict):
        raise _no_weights(name)
    if odd := [key for key, value in state_dict.items() if not isinstance(value, Tensor)]:
        raise RuntimeError(f"{name} is no checkpoint of weights: its entry '{odd[0]}' is not a tensor.")
    return state_dict


def load_metadata(path: str | Path) -> dict[str, str]:
    """The texts that a safetensors file holds beside its tensors; none in any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError:
        return {}


def save(weights: Mapping[str, Tensor], path: str | Path, metadata: dict[str, str]) -> None:
    """Writes a new safetensors file, which is there completely or not at all; nothing is ever overwritten.

    Raises:
        FileExistsError: the name is taken.
        RuntimeError: the folder cannot be written to, or the disk is full.
    """
    target = Path(path)
    try:
        # Under a name that no list of models shows.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as folder:
            unfinished = Path(folder) / "unfinished"
            comfy.utils.save_torch_file(dict(weights), str(unfinished), metadata={"format": "pt", **metadata})
            publish(unfinished, target)
    except FileExistsError:
        raise
    except (OSError, SafetensorError) as error:
        raise RuntimeError(
            f"{target.name} could not be written to {target.parent}: {error}. Make room or choose another folder, "
            "then run it again; no file has changed."
        ) from error


def publish(unfinished: Path, target: Path) -> None:
    """Gives a complete file its name, in the same file system.

    Raises:
        FileExistsError: the name is taken, be it by a link to nowhere.
    """
    try:
        os.link(unfinished, target)
    except FileExistsError:
        raise FileExistsError(f"{target} is a file that exists already. Choose another name.") from None
    except OSError:  # of file systems that know no links, such as exFAT
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # takes the name
        try:
            os.replace(unfinished, target)
        except OSError:
            os.unlink(target)
            raise
    else:
        os.unlink(unfinished)


def _is_of_memory(error: Exception) -> bool:
    """Whether the system had no room for a file, be it whole or not: a damaged one may ask for any amount."""
    # Not "memory" alone: errors quote the file's path
    said = ("allocate memory", "enough memory", "out of memory", "paging file")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def _no_memory(name: str) -> RuntimeError:
    return RuntimeError(
        f"There is not enough main memory to read {name}. Close other programs, or enlarge the swap or paging file; if "
        "there is plenty, the file is damaged."
    )


def _unreadable(name: str) -> RuntimeError:
    return RuntimeError(
        f"{name} cannot be read as a checkpoint; it is damaged, incomplete or another kind of file. Download it again."
    )


def _no_weights(name: str) -> RuntimeError:
    return RuntimeError(f"{name} does not hold named weights, so it is no checkpoint of a model.")


def shapes(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The table of a state dict that `check` compares: name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def require_floats(state_dict: Mapping[str, Tensor], what: str) -> None:
    """Refuses integers, booleans and complex numbers where weights are needed.

    Raises:
        RuntimeError: a tensor holds them; names the first.
    """
    for name, tensor in state_dict.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise RuntimeError(f"{what} does not fit: {name} holds {kind} instead of floating-point numbers.")


def check(found: Shapes, expected: Shapes, what: str, is_optional: Callable[[str], bool] | None = None) -> None:
    """Compares names and shapes with what a network needs.

    Args:
        found: what a file has.
        expected: what the network needs.
        what: the subject of the sentence, for example "virtual_tryon.pth".
        is_optional: names that may be there although nothing needs them.

    Raises:
        RuntimeError: something is missing, unknown or of another shape; one sentence names the first of each.
    """
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected and not (is_optional and is_optional(name))]
    other = [
        f"{name} is {_times(found[name])} instead of {_times(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    parts = [
        _some(missing, f"of its {len(expected)} weights are missing"),
        _some(other, "have another shape"),
        _some(unknown, "are unknown"),
    ]
    if any(parts):
        raise RuntimeError(f"{what} does not fit: {', '.join(filter(None, parts))}.")


def _some(names: Iterable[str], complaint: str) -> str:
    names = list(names)
    return f"{len(names)} {complaint} ({names[0]}{', …' if len(names) > 1 else ''})" if names else ""


def _times(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"
