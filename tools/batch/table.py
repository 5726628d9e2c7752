"""The table of overrides: CSV, TSV or JSONL, one run of the workflow a row. Read row by row, never as a whole."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch.files import NAME_BYTES, is_plain_name, parse_json

NAME = "name"
TEXT_ENDINGS = (".csv", ".tsv", ".tab", ".txt")
DELIMITERS = "\t;,"
# Names that other things in the folder of results have, and room for a number behind a name that is there twice.
RESERVED = ("manifest.jsonl", "host.log", "logs")
ROOM = 12


class TableError(ValueError):
    """The table, or a column or value in it, does not fit the workflow."""


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        number: place in the table, from 1.
        name: of its folder among the results.
        overrides: column, such as `KSampler.seed`, -> value.
        decimal_comma: numbers are written 0,5, as where cells are separated by semicolons.
    """

    number: int
    name: str
    overrides: Mapping[str, Any]
    decimal_comma: bool = False


def read_table(path: Path) -> Iterator[Row]:
    """The rows of a text file with a header line and commas, semicolons or tabs, or of a `.jsonl` file.

    Empty cells are left out, so the workflow's own value stays, and so are rows of nothing else. The column `name`, if
    there is one, names the folders.

    Raises: TableError naming the line when the file cannot be read as a table.
    """
    ending = path.suffix.lower()
    if ending not in (*TEXT_ENDINGS, ".jsonl"):
        raise TableError(f"{path}: a table is a .csv, .tsv, .txt or .jsonl file.")
    number = 0
    try:
        for values, decimal_comma in _jsonl(path) if ending == ".jsonl" else _cells(path):
            number += 1
            name = str(values.pop(NAME, "") or f"{number:04}")
            yield Row(number, _folder_name(name, number), values, decimal_comma)
    except (UnicodeError, csv.Error) as error:
        raise TableError(f"{path} is no table in UTF-8 (in Excel: CSV UTF-8): {error}") from error
    if not number:
        raise TableError(f"{path} has no rows.")


def _cells(path: Path) -> Iterator[tuple[dict[str, Any], bool]]:
    with open(path, encoding=_encoding(path), newline="") as file:
        first = file.readline()
        delimiter, is_header = _delimiter(first)
        reader = csv.reader(itertools.chain([first] if is_header else [], file), delimiter=delimiter, strict=True)
        columns = [column.strip() for column in next(reader, [])]
        for column in columns:
            if column and columns.count(column) > 1:
                raise TableError(f"{path}: column {column!r} is there twice.")
        for cells in reader:
            line = reader.line_num + (not is_header)
            if cells and len(cells) != len(columns):
                raise TableError(f"{path}, line {line}: it has more or fewer cells than the header.")
            values = {column: cell for column, cell in zip(columns, cells, strict=False) if cell != ""}
            if "" in values:
                raise TableError(f"{path}, line {line}: {values['']!r} stands in a column without a name.")
            if values:
                yield values, delimiter == ";"


def _encoding(path: Path) -> str:
    """UTF-8, with or without a mark; or UTF-16, in which Excel saves "Unicode text"."""
    with open(path, "rb") as file:
        return "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _delimiter(line: str) -> tuple[str, bool]:
    """What separates the cells, and whether the line is the header: Excel may have `sep=;` before it."""
    if line[:4].lower() == "sep=" and line[4:5]:
        return line[4], False

    def fit(delimiter: str) -> tuple[bool, int]:
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
        return all(cell == NAME or "." in cell for cell in cells if cell), len(cells)

    return max(DELIMITERS, key=fit), True


def _jsonl(path: Path) -> Iterator[tuple[dict[str, Any], bool]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = parse_json(line, unique=True)
            except ValueError as error:
                raise TableError(f"{path}, line {number}: {error}") from error
            if not isinstance(values, dict):
                raise TableError(f"{path}, line {number}: an object like {{'KSampler.seed': 1}} is needed.")
            yield {column: value for column, value in values.items() if value is not None}, False


def _folder_name(name: str, number: int) -> str:
    if not is_plain_name(name + "_" * ROOM) or name[-1] in ". " or name.lower() in RESERVED:
        raise TableError(
            f"Row {number}: {name[:80]!r} cannot be the name of a folder: at most {NAME_BYTES - ROOM} bytes, none of "
            '/ \\ : * ? " < > |, no dot or space at an end, and not ' + ", ".join(RESERVED) + "."
        )
    return name
