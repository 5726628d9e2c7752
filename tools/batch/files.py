"""Names and files of a batch: what may be a name, and how a file is written that was not there before."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME_BYTES = 255
CONTROL = frozenset(chr(code) for code in (*range(32), 127))
# What Windows does not allow in a name, so that a folder of results can be copied anywhere.
FORBIDDEN = CONTROL | frozenset('/\\:*?"<>|')


def parse_json(text: str | bytes, unique: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        unique: refuse an object that has a key twice.

    Raises: ValueError when it is none, also when it is nested so deeply that Python gives up.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error


def json_objects(path: Path, error: type[ValueError]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with its place, for messages.

    Raises: `error` when the file cannot be read, or a line is no object.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # a text may hold what else Python takes for an end
    except (OSError, UnicodeDecodeError) as reason:
        raise error(f"{path} cannot be read: {reason}.") from reason
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = parse_json(line)
        except ValueError as reason:
            raise error(f"{where} is no JSON: {reason}.") from reason
        if not isinstance(value, dict):
            raise error(f"{where} is no object of names and values: {line.strip()[:40]}.")
        yield where, value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key in found if sum(key == each for each, _ in pairs) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return found


def is_file_name(name: object) -> bool:
    """Whether a file here can have this name, and lies where it is put."""
    if os.name == "nt":
        return is_plain_name(name)
    return isinstance(name, str) and name not in ("", ".", "..") and not (CONTROL | {"/"}) & set(name) and _fits(name)


def is_plain_name(name: object) -> bool:
    """Whether something can be the name of a file or folder on any system, and leads nowhere else."""
    if not isinstance(name, str) or not name or name.startswith(".") or name[-1] in ". ":
        return False
    return not FORBIDDEN & set(name) and _fits(name)


def _fits(name: str) -> bool:
    try:
        return len(name.encode()) <= NAME_BYTES
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def shortened(stem: str, ending: str, room: int = NAME_BYTES) -> str:
    """A name of at most so many bytes: its stem is cut, and its ending only where that alone is too long."""
    while len(f"{stem}{ending}".encode()) > room:
        stem, ending = stem[:-1], ending if stem else ending[:-1]
    return f"{stem}{ending}"


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in its canonical form, or of a file given by its path."""
    if isinstance(value, Path):
        return file_digest(value)
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()


@contextlib.contextmanager
def new_file(path: Path, workshop: Path | None = None) -> Iterator[Any]:
    """A file to write bytes to that appears under its name when it is complete, or not at all.

    Args:
        workshop: folder on the same disk where it lies until then; beside its place by default.

    Raises: FileExistsError when there is something of that name, a dangling link too.
    """
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists already; choose another name.")
    part = (workshop or path.parent) / f".{uuid.uuid4().hex}.part"
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _publish(part, path)
    finally:
        part.unlink(missing_ok=True)


def _publish(part: Path, path: Path) -> None:
    try:
        os.link(part, path)  # unlike a rename, it never replaces what came to be there meanwhile
    except FileExistsError as error:
        raise FileExistsError(f"{path} exists already; choose another name.") from error
    except OSError:
        # No links on this file system. The name is taken first, so that no other process takes it.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        try:
            os.replace(part, path)
        except OSError:
            path.unlink()
            raise
