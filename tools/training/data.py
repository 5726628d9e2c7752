"""A look at all of a data set's files before the first step: all that is wrong with them, and their digest."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy
from PIL import ExifTags, Image
from tqdm.auto import tqdm

MISSING, UNREADABLE, WRONG = "missing", "unreadable", "wrong"
SHOWN = 50  # of a kind's complaints on the terminal
CACHE = "data.json"
RULES = 2  # a higher one has all files looked at again
TURNED = 5  # from this EXIF orientation on, a picture lies on its side
Record = TypeVar("Record")


class DataError(ValueError):
    """What is wrong with a data set, all of it."""


@dataclass(frozen=True)
class Looked:
    """What a look at a file found.

    Attributes:
        stamp: bytes and time of change of the file, and `RULES`.
        digest: of its content.
        size: (width, height) of a picture as it is seen, (0, 0) of other files.
        brightest: value of its pixels, 0 to 255.
        problem: kind of what is wrong, and a sentence; empty = nothing.
    """

    stamp: tuple[int, ...]
    digest: str
    size: tuple[int, int]
    brightest: int
    problem: tuple[str, str] | None = None


# What is wrong with a record, from what its files are by their roles.
Rule = Callable[[Record, Mapping[str, Looked]], Iterable[str]]


def require_good(
    records: Sequence[Record],
    files: Callable[[Record], Mapping[str, Path]],
    rule: Rule[Record],
    output: Path,
    allow_bad: float,
) -> tuple[list[Record], str]:
    """The records whose files are good, and a digest of them and their content.

    Every picture is decoded, so that one that ends too early is found as well. What was found is kept in the output
    folder, so that the next start only looks at what has changed.

    Args:
        files: of a record, by role.
        allow_bad: which part of the records may be bad; they are left out.

    Raises:
        DataError: there are no records, or more are bad; lists them, and leaves the whole list in the output folder.
    """
    if not records:
        raise DataError("The data set holds no records.")
    looked = look({path for record in records for path in files(record).values()}, output / CACHE)
    good, complaints = [], {MISSING: dict[str, None](), UNREADABLE: dict[str, None](), WRONG: dict[str, None]()}
    digest = hashlib.sha256()
    for number, record in enumerate(records):
        paths = files(record)
        is_bad = False
        for path in paths.values():
            if (problem := looked[path].problem) is not None:
                complaints[problem[0]][f"{path}: {problem[1]}" if problem[1] else f"{path}"] = None
                is_bad = True
        if not is_bad:
            for sentence in rule(record, {role: looked[path] for role, path in paths.items()}):
                complaints[WRONG][f"record {number + 1}: {sentence}"] = None
                is_bad = True
        if not is_bad:
            good.append(record)
            digest.update(repr(sorted((role, looked[path].digest) for role, path in paths.items())).encode())
            digest.update(repr([value for value in vars(record).values() if isinstance(value, str)]).encode())
    if len(good) < len(records):
        _report(complaints, len(records), len(good), output, allow_bad)
    return good, digest.hexdigest()


def look(paths: Iterable[Path], cache: Path) -> dict[Path, Looked]:
    """Looks at files, several at a time; those that have not changed since the last look are not read again."""
    known = _read_cache(cache)
    wanted = sorted(set(paths))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda path: _look(path, known.get(str(path))), wanted)
        bar = tqdm(found, "looking at the data", len(wanted), leave=False, delay=2, disable=None)
        looked = dict(zip(wanted, bar, strict=True))
    cache.parent.mkdir(parents=True, exist_ok=True)
    unfinished = cache.with_suffix(".unfinished")
    good = {str(path): asdict(each) for path, each in looked.items() if not each.problem}
    unfinished.write_text(json.dumps(good), encoding="utf-8")
    unfinished.replace(cache)
    return looked


def _look(path: Path, known: Looked | None) -> Looked:
    try:
        status = path.stat()
        stamp = status.st_size, status.st_mtime_ns, RULES
        if known is not None and known.stamp == stamp:
            return known
        content = path.read_bytes()
    except FileNotFoundError:
        return Looked((0, 0), "", (0, 0), 0, (MISSING, ""))
    except OSError as error:
        return Looked((0, 0), "", (0, 0), 0, (UNREADABLE, str(error)))
    digest = hashlib.sha256(content).hexdigest()
    try:
        return Looked(stamp, digest, *_picture(path, content))
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        return Looked(stamp, digest, (0, 0), 0, (UNREADABLE, f"{error}"))


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """(width, height) of an open picture as it is seen, whichever way it lies in its file."""
    is_turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= TURNED
    return picture.size[::-1] if is_turned else picture.size


def _picture(path: Path, content: bytes) -> tuple[tuple[int, int], int]:
    """Size and brightest value."""
    if path.suffix.lower() == ".json":
        json.loads(content)
        return (0, 0), 0
    if path.suffix.lower() == ".npy":
        shape = numpy.load(io.BytesIO(content), allow_pickle=False).shape
        return (shape[1], shape[0]), 0
    with Image.open(io.BytesIO(content)) as picture:
        size = upright_size(picture)
        if picture.format == "JPEG":  # decodes fewer frequencies, but reads to the end
            picture.draft(picture.mode, (max(picture.width // 8, 1), max(picture.height // 8, 1)))
        picture.load()
        if picture.mode.startswith(("I", "F")) and picture.getextrema()[1] > 255:
            raise ValueError(f"it has more than 8 bits a channel ({picture.mode}), which would be cut off at white")
        return size, int(picture.convert("L").getextrema()[1])


def _read_cache(path: Path) -> dict[str, Looked]:
    """What an earlier look found.

    Raises:
        DataError: there is a file of that name, but not one of ours.
    """
    if not path.exists():
        return {}
    try:
        entries: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: Looked(tuple(each["stamp"]), each["digest"], tuple(each["size"]), each["brightest"])
            for name, each in entries.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} was not made by a training, which keeps its own there. Choose another output."
        ) from error


def _report(
    complaints: Mapping[str, Mapping[str, None]], total: int, good: int, output: Path, allow_bad: float
) -> None:
    """Prints the list, or raises it."""
    bad = total - good
    counts = ", ".join(f"{len(each)} {kind}" for kind, each in complaints.items() if each)
    everything = output / "bad_data.txt"
    everything.write_text(_listed(complaints), encoding="utf-8")
    few = _listed(complaints, SHOWN)
    text = f"{bad} of {total} records are bad ({counts}).\n{few}The whole list is in {everything}."
    if not good or bad > allow_bad * total:
        raise DataError(f"{text} Mend them, or set allow_bad to the part that may be left out.")
    print(f"{text} They are left out.")


def _listed(complaints: Mapping[str, Mapping[str, None]], most: int | None = None) -> str:
    """The complaints of each kind, at most so many."""
    lines = []
    for kind, each in complaints.items():
        if each:
            lines += [f"{kind}:", *(f"  {line}" for line in list(each)[:most])]
        if most is not None and len(each) > most:
            lines.append(f"  … and {len(each) - most} more")
    return "".join(f"{line}\n" for line in lines)
