"""What decides a worker's pictures: versions, node packs, models. Workers are compared before the first row."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from batch.files import digest, file_digest
from filelock import FileLock
from node_specs import DYNAMIC_COMBO

Get = Callable[[str], Any]
# Name of a thing -> its version or SHA-256, such as "model sd15.safetensors".
Fingerprint = dict[str, str]
SHOWN = 12
# Folders of a ComfyUI that hold no code of its own.
NOT_CODE = {"custom_nodes", "models", "input", "output", "temp", "user", "tests", "tests-unit"}


def fingerprint(get: Get, main: Path, classes: Iterable[str], names: Iterable[str], cache: FileDigests) -> Fingerprint:
    """A host's fingerprint.

    Args:
        get: the JSON the host answers to a path.
        main: its folder, the one with main.py.
        classes: node classes that the workflow uses.
        names: input values of the workflow and its table that may be names of model files.
    """
    system = get("/system_stats")["system"]
    found = {"ComfyUI": f"{system.get('comfyui_version')} {tree_digest(main, cache, NOT_CODE, '.py')[:SHOWN]}"}
    base = Path(_option(system["argv"], "--base-directory") or main)
    for kind in sorted(set(classes)):
        info = get(f"/object_info/{kind}").get(kind)
        if info is None:
            found[f"node {kind}"] = "missing"
            continue
        found[f"node {kind}"] = digest(without_files(info["input"]))
        folder, dot, pack = str(info.get("python_module", "")).partition(".")
        if folder == "custom_nodes" and dot:
            found[f"pack {pack}"] = tree_digest(custom_nodes(base, pack), cache)
    for name, path in sorted(model_files(get, set(names)).items()):
        found[f"model {name}"] = cache(path) if path.is_file() else "missing"
    return found


def differences(own: Fingerprint, expected: Fingerprint) -> list[str]:
    """What differs, in words; empty when nothing does."""
    texts = []
    for name in sorted(own.keys() | expected.keys()):
        here, there = own.get(name, "missing"), expected.get(name, "missing")
        if here != there:
            texts.append(f"{name} is {here[:40]} there and {there[:40]} elsewhere")
    return texts


def agreed(found: Mapping[int, Fingerprint], nearest: set[int]) -> Fingerprint:
    """What most workers have; where two opinions are equally frequent, that of the workers in `nearest` counts."""
    votes = Counter(digest(each) for each in found.values())
    near = Counter(digest(each) for number, each in found.items() if number in nearest)
    return max((found[number] for number in sorted(found)), key=lambda each: (votes[digest(each)], near[digest(each)]))


def without_files(inputs: Mapping[str, Any]) -> Any:
    """A node's inputs, by section and name, without what there is to choose: that is a matter of files."""
    return {
        section: {name: _without_choices(*description) for name, description in (inputs.get(section) or {}).items()}
        for section in ("required", "optional")
    }


def _without_choices(kind: Any, options: Mapping[str, Any] = MappingProxyType({}), *rest: Any) -> Any:
    if kind == DYNAMIC_COMBO:
        choices = [{**each, "inputs": without_files(each["inputs"])} for each in options.get("options", ())]
        return [kind, {**options, "options": choices}]
    if kind == "COMBO" or isinstance(kind, list):  # the older way to write it
        return ["COMBO", {name: value for name, value in options.items() if name not in ("options", "default")}]
    return [kind, dict(options)]


def model_files(get: Get, names: set[str]) -> dict[str, Path]:
    """Those of `names` that are model files of the host, with their places; the first folder wins, as in ComfyUI."""
    found: dict[str, Path] = {}
    for kind in get("/experiment/models"):
        for each in get(f"/experiment/models/{kind['name']}"):
            if each["name"] in names:
                path = Path(kind["folders"][each["pathIndex"]], each["name"])
                found.setdefault(f"{kind['name']}/{each['name']}", path)
    return found


def custom_nodes(base: Path, pack: str) -> Path:
    """The folder or the file of a node pack."""
    folder = base / "custom_nodes" / pack
    return folder if folder.exists() else folder.with_name(f"{pack}.py")


def tree_digest(root: Path, cache: FileDigests, without: Iterable[str] = (), ending: str = "") -> str:
    """SHA-256 over names and contents of all files of a folder, hidden ones and byte code apart."""
    total = hashlib.sha256()
    for path in sorted(_files(root, set(without))):
        if path.name.endswith(ending):
            total.update(f"{path.relative_to(root)}\0{cache(path)}\n".encode())
    return total.hexdigest()


def _files(root: Path, without: set[str]) -> Iterator[Path]:
    if root.is_file():
        yield root
    for folder, folders, files in os.walk(root, followlinks=False):
        top = Path(folder) == root
        folders[:] = [
            name for name in folders if name[0] != "." and name != "__pycache__" and not (top and name in without)
        ]
        yield from (Path(folder, name) for name in files if name[0] != "." and not name.endswith(".pyc"))


class FileDigests:
    """SHA-256 of files, remembered by path, size and time of the last change; one file for all workers of a machine.

    Args:
        store: the file it is remembered in, made when needed.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._known: dict[str, list[Any]] | None = None
        self._changed = False

    def __enter__(self) -> FileDigests:
        self._store.parent.mkdir(parents=True, exist_ok=True)
        # Held while hashing: the second worker of a machine waits for what the first one finds.
        self._lock = FileLock(self._store.with_suffix(".lock"))
        self._lock.acquire()
        try:
            self._known = json.loads(self._store.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}
        return self

    def __exit__(self, *reason: object) -> None:
        if self._changed:
            part = self._store.with_suffix(".part")
            part.write_text(json.dumps(self._known), encoding="utf-8")
            os.replace(part, self._store)
        self._lock.release()

    def __call__(self, path: Path) -> str:
        """SHA-256 of a file."""
        assert self._known is not None, "use it in a with statement"
        path = path.resolve()
        status = path.stat()
        about = [status.st_size, status.st_mtime_ns]
        entry = self._known.get(str(path))
        if entry is None or entry[:2] != about:
            entry = self._known[str(path)] = [*about, file_digest(path)]
            self._changed = True
        return str(entry[2])


def _option(arguments: list[str], name: str) -> str | None:
    for position, each in enumerate(arguments):
        if each == name:
            return arguments[position + 1]
        if each.startswith(f"{name}="):
            return each.partition("=")[2]
    return None
