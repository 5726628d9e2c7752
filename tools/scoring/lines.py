"""What is scored: a line for each picture, of a list or of what run_workflow.py wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from batch.files import json_objects

Line = dict[str, Any]
NEEDED = {
    "tryon": ("result", "truth"),
    "style": ("result", "reference", "prompt"),
    "subject": ("result", "reference", "prompt"),
    "alignment": ("result", "truth"),
}
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


class EvaluationError(ValueError):
    """One sentence on why there are no scores."""


def read_list(path: Path) -> list[Line]:
    """Lines of a JSONL file, with the files' paths from its folder."""
    return [_placed(line, path.parent) for _, line in json_objects(path, EvaluationError)]


def read_results(folder: Path, columns: Sequence[str], files: Path) -> list[Line]:
    """The first picture of each row that run_workflow.py has done, with the row's inputs under other names.

    Args:
        columns: NAME=NODE.INPUT each.
        files: folder that the rows' files are named from, that of their table.
    """
    if odd := [column for column in columns if "=" not in column]:
        raise EvaluationError(f"--columns {odd[0]}: write NAME=NODE.INPUT, such as truth=LoadImage.image.")
    names = dict(column.split("=", 1) for column in columns)
    lines = []
    done = (record for record in _records(folder / "manifest.jsonl") if record.get("state") == "done")
    # A row that was run again has a line for each time, the last of which tells where its results are.
    for record in {record["key"]: record for record in done}.values():
        place = folder / record["folder"]
        pictures = sorted(path for path in place.rglob("*") if path.suffix.lower() in PICTURES)
        if not pictures:
            raise EvaluationError(f"{place} holds no picture.")
        given = record.get("inputs", {})
        missing = [column for column in names.values() if column not in given]
        if missing:
            raise EvaluationError(
                f"The row {record['folder']} was run without {missing[0]}. It has {', '.join(given)}."
            )
        values = {name: given[column] for name, column in names.items()}
        lines.append({**_placed(values, files), "result": pictures[0]})
    return lines


def _records(manifest: Path) -> Iterator[Line]:
    """What the manifest says of the rows; a last line that was cut off says nothing, as for the runner."""
    for text in manifest.read_text(encoding="utf-8").splitlines(keepends=True)[1:]:
        try:
            yield json.loads(text)
        except ValueError as error:
            if text.endswith("\n"):
                raise EvaluationError(f"{manifest} is damaged: {error}.") from error


def _placed(line: Line, folder: Path) -> Line:
    placed = dict(line)
    for name in ("result", "truth", "reference"):
        if name in line:
            value = line[name]
            placed[name] = [folder / str(each) for each in value] if isinstance(value, list) else folder / str(value)
    return placed


def require_complete(lines: Sequence[Line], kind: str) -> None:
    """Checks that every line has what the scores of a kind need, and that the files are there.

    Raises:
        EvaluationError: it has not; says of how many, and names the first.
    """
    if not lines:
        raise EvaluationError("There is nothing to score: the list has no lines.")
    wrong = []
    for number, line in enumerate(lines, 1):
        wrong += [f"line {number} has no '{name}'" for name in NEEDED[kind] if name not in line]
        wrong += [f"{path} is missing" for path in _files(line) if not path.is_file()]
    if wrong:
        raise EvaluationError(f"{len(wrong)} entries of the list cannot be scored: {'; '.join(wrong[:10])}.")


def _files(line: Line) -> Iterator[Path]:
    for name in ("result", "truth", "reference"):
        value = line.get(name, [])
        yield from value if isinstance(value, list) else [value]
