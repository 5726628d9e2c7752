"""The table of overrides: CSV or JSONL, one run of the workflow a row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "name"


class TableError(ValueError):
    """The table, or a column or value in it, does not fit the workflow."""


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        number: place in the table, from 1.
        name: of its folder among the results.
        overrides: column, such as `KSampler.seed`, -> value.
    """

    number: int
    name: str
    overrides: Mapping[str, Any]


def read_table(path: Path) -> list[Row]:
    """The rows of a `.csv` (with a header line) or `.jsonl` (one object a line) file.

    Empty cells are left out, so the workflow's own value stays. The column `name`, if there is one, names the folders.

    Raises: TableError naming the line when the file cannot be read as a table.
    """
    readers = {".csv": _csv, ".jsonl": _jsonl}
    if path.suffix.lower() not in readers:
        raise TableError(f"{path}: a table is a .csv or a .jsonl file.")
    rows = []
    try:
        for number, values in enumerate(readers[path.suffix.lower()](path), 1):
            name = str(values.pop(NAME, "") or f"{number:04}")
            rows.append(Row(number, _folder_name(name, number), values))
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path} is no table in UTF-8: {error}") from error
    if not rows:
        raise TableError(f"{path} has no rows.")
    return rows


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    # Excel starts its UTF-8 files with a byte order mark.
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        for values in reader:
            if None in values or None in values.values():
                raise TableError(f"{path}, line {reader.line_num}: it has more or fewer cells than the header.")
            yield {column.strip(): value for column, value in values.items() if value != ""}


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise TableError(f"{path}, line {number}: {error}") from error
        if not isinstance(values, dict):
            raise TableError(f"{path}, line {number}: an object like {{'KSampler.seed': 1}} is needed.")
        yield {column: value for column, value in values.items() if value is not None}


def _folder_name(name: str, number: int) -> str:
    if name in (".", "..") or name.startswith(".") or any(letter in name for letter in '/\\:*?"<>|\0'):
        raise TableError(f"Row {number}: the name {name!r} cannot be the name of a folder.")
    return name
