"""The table of overrides: CSV, TSV or JSONL, one run of the workflow a row. Read row by row, never as a whole."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from batch.files import NAME_BYTES, is_plain_name, parse_json

NAME = "name"
TEXT_ENDINGS = (".csv", ".tsv", ".tab", ".txt")
DELIMITERS = "\t;,"
# Names that other things in the folder of results have, and room for a number behind a name that is there twice.
RESERVED = ("manifest.jsonl", "host.log", "logs")
ROOM = 12


MOST_FAULTS = 20


class Wrong(NamedTuple):
    """One thing that is wrong.

    Attributes:
        text: a sentence.
        column: that it is about; empty if it is about none.
    """

    text: str
    column: str = ""

    def __str__(self) -> str:
        return f"Column {self.column!r}: {self.text}" if self.column else self.text


class TableError(ValueError):
    """The table, or a column or value in it, does not fit the workflow.

    Attributes:
        every: all that is wrong.
    """

    def __init__(self, *every: Wrong | str) -> None:
        super().__init__("\n".join(map(str, every)))
        self.every = [each if isinstance(each, Wrong) else Wrong(each) for each in every]


class Faults:
    """All that is wrong with a table, so that it can be mended at once: what is wrong with many rows is said once.

    Args:
        where: stands before each.
    """

    def __init__(self, where: str = "") -> None:
        self._where = where
        self._rows: dict[str, tuple[str, int]] = {}
        self._more = 0

    def add(self, row: str, text: str) -> None:
        """Notes a fault of a row, or of no single row if `row` is empty."""
        if text not in self._rows and len(self._rows) == MOST_FAULTS:
            self._more += 1
            return
        first, number = self._rows.get(text, (row, 0))
        self._rows[text] = first, number + 1

    def raise_any(self) -> None:
        """Raises: TableError if there are any; of very many only the first and the number of the others are said."""
        lines = [f"{self._where}{_rows(*rows)}{text}" for text, rows in self._rows.items()]
        if self._more:
            lines.append(f"… and {self._more} more.")
        if lines:
            raise TableError(*lines)


def _rows(first: str, number: int) -> str:
    if not first:
        return ""
    others = f" and {number - 1} other{'s' * (number > 2)}" if number > 1 else ""
    return f"{first}{others}: "


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

    def __str__(self) -> str:
        return f"Row {self.number} ({self.name})"


def read_table(path: Path) -> Iterator[Row]:
    """The rows of a text file with a header line and commas, semicolons or tabs, or of a `.jsonl` file.

    Empty cells are left out, so the workflow's own value stays, and so are rows of nothing else. The column `name`, if
    there is one, names the folders.

    Raises: TableError naming the line when the file cannot be read as a table.
    """
    for each in _read(path):
        if isinstance(each, TableError):
            raise each
        yield each


def check_table(path: Path, faults: Faults) -> None:
    """Notes all that is wrong with the table itself, whatever the workflow."""
    for each in _read(path):
        if isinstance(each, TableError):
            faults.add("", str(each))


def _read(path: Path) -> Iterator[Row | TableError]:
    """The rows, and in the place of what is none, what is wrong there."""
    ending = path.suffix.lower()
    if ending not in (*TEXT_ENDINGS, ".jsonl"):
        yield TableError(f"{path}: a table is a .csv, .tsv, .txt or .jsonl file.")
        return
    number = 0
    try:
        for each in _jsonl(path) if ending == ".jsonl" else _cells(path):
            number += 1
            if isinstance(each, TableError):
                yield each
                continue
            values, decimal_comma = each
            name = str(values.pop(NAME, "") or f"{number:04}")
            yield _name_fault(name, number) or Row(number, name, values, decimal_comma)
    except UnicodeError as error:
        yield TableError(f"{path} is no table in UTF-8 (in Excel: CSV UTF-8): {error}")
        return
    if not number:
        yield TableError(f"{path} has no rows.")


Values = tuple[dict[str, Any], bool]


def _cells(path: Path) -> Iterator[Values | TableError]:
    with open(path, encoding=_encoding(path), newline="") as file:
        first = file.readline()
        delimiter, is_header = _delimiter(first)
        reader = csv.reader(itertools.chain([first] if is_header else [], file), delimiter=delimiter, strict=True)
        line = 1
        try:
            columns = [_column(cell) for cell in next(reader, [])]
            if twice := next((column for column in columns if column and columns.count(column) > 1), None):
                yield TableError(f"{path}: column {twice!r} is there twice.")
                return
            for cells in reader:
                line = reader.line_num + (not is_header)
                values = {column: cell for column, cell in zip(columns, cells, strict=False) if cell != ""}
                if cells and len(cells) != len(columns):
                    yield TableError(f"{path}, line {line}: it has more or fewer cells than the header.")
                elif "" in values:
                    yield TableError(f"{path}, line {line}: {values['']!r} stands in a column without a name.")
                elif values:
                    yield values, delimiter == ";"
        except csv.Error as error:
            yield TableError(
                f"{path}, after line {line}: a quotation mark is not closed, or stands inside of a cell ({error}); "
                f'there, write two (""). A .jsonl table may have cells of more than {csv.field_size_limit()} letters.'
            )


def _column(cell: str) -> str:
    column = cell.strip()
    return NAME if column.lower() == NAME else column


def _encoding(path: Path) -> str:
    """UTF-8, with or without a mark; or UTF-16, in which Excel saves "Unicode text"."""
    with open(path, "rb") as file:
        return "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _delimiter(line: str) -> tuple[str, bool]:
    """What separates the cells, and whether the line is the header: Excel may have `sep=;` before it."""
    if line[:4].lower() == "sep=" and line[4:5]:
        return line[4], False

    def fit(delimiter: str) -> tuple[bool, int]:
        cells = [_column(cell) for cell in next(csv.reader([line], delimiter=delimiter), [])]
        return all(cell == NAME or "." in cell for cell in cells if cell), len(cells)

    return max(DELIMITERS, key=fit), True


def _jsonl(path: Path) -> Iterator[Values | TableError]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = parse_json(line, unique=True)
            except ValueError as error:
                yield TableError(f"{path}, line {number}: {error}")
                continue
            if not isinstance(values, dict):
                yield TableError(f"{path}, line {number}: an object like {{'KSampler.seed': 1}} is needed.")
                continue
            yield {column: value for column, value in values.items() if value is not None}, False


def _name_fault(name: str, number: int) -> TableError | None:
    if is_plain_name(name + "_" * ROOM) and name[-1] not in ". " and name.lower() not in RESERVED:
        return None
    return TableError(
        f"Row {number}: {name[:80]!r} cannot be the name of a folder: at most {NAME_BYTES - ROOM} bytes, none of "
        '/ \\ : * ? " < > |, no dot or space at an end, and not ' + ", ".join(RESERVED) + "."
    )
