"""From rows to jobs: the whole table is checked before the first run, and files are sent row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from node_specs import Fault

from batch.files import NAME_BYTES, digest, shortened
from batch.overrides import Place, Prompt, Workflow
from batch.table import Faults, Row, TableError, Wrong


@dataclass(frozen=True)
class Upload:
    """A file on this machine that an input of the workflow names.

    Attributes:
        sha256: of its content when the job was made.
    """

    place: Place
    column: str
    path: Path
    sha256: str

    @property
    def name(self) -> str:
        """What it is sent as: files of the same name from different folders stay apart."""
        room = NAME_BYTES - len(self.sha256) - 1
        return f"{self.sha256}-{shortened(self.path.stem, self.path.suffix, room)}"


@dataclass(frozen=True)
class Job:
    """A row ready to be sent, but for its files.

    Attributes:
        row: with the values that hold for every row.
        key: the same for the same workflow, values and contents of files, whatever a host calls the files, and for
            nothing else in a table.
        prompt: the workflow with the row's values; files have the names they have in the table.
    """

    key: str
    row: Row
    prompt: Prompt
    uploads: tuple[Upload, ...] = ()

    @property
    def inputs(self) -> dict[str, str]:
        """SHA-256 of the row's files, by column."""
        return {each.column: each.sha256 for each in self.uploads}

    def with_names(self, names: Mapping[Place, str]) -> Prompt:
        """The workflow with what a host calls the files."""
        prompt = {node: {**each, "inputs": dict(each["inputs"])} for node, each in self.prompt.items()}
        for (node, name), value in names.items():
            prompt[node]["inputs"][name] = value
        return prompt


class Plan:
    """What is to be run: a workflow, values for all rows, and where files may come from.

    Args:
        common: values for every row; a row's own value wins.
        folder: where relative paths in the table start. Files in it are sent to the host.
        allowed: other folders whose files may be sent.
        unchecked: values that do not fit the descriptions of the nodes are left to the host.

    Attributes:
        elsewhere: name of each file that the host must have in its input folder -> row and fault if it has not;
            `check` fills it.
    """

    def __init__(
        self,
        workflow: Workflow,
        common: Mapping[str, Any],
        folder: Path,
        allowed: Sequence[Path] = (),
        unchecked: bool = False,
    ) -> None:
        self.workflow = workflow
        self.elsewhere: dict[str, tuple[str, str]] = {}
        self._unchecked = unchecked
        self._common = common
        try:
            self._common_values = workflow.values(common)
        except TableError as error:
            raise TableError(*map(_as_set, error.every)) from error
        self._folder = folder
        self._allowed = [each.resolve() for each in (folder, *allowed)]
        self._digests: dict[tuple[str, int, int], str] = {}

    def check(self, rows: Iterable[Row], faults: Faults) -> int:
        """The number of rows. What does not fit is noted. One row is held at a time, and no file is read."""
        number = 0
        for row in rows:
            number += 1
            try:
                self._check(row)
            except TableError as error:
                for each in error.every:
                    faults.add(*self._told(row, each))
        return number

    def _check(self, row: Row) -> None:
        overrides = self.overrides(row)
        prompt, files = self._fitted(overrides, row.decimal_comma)
        if self._unchecked:
            return
        sent = {place for place, _, _ in files}
        columns = {self.workflow.place(column): column for column in overrides}
        wrong = []
        for fault in self.workflow.faults(prompt):
            place = fault.node, fault.name
            if not fault.file:
                wrong.append(_wrong(fault, prompt, columns.get(place)))
            elif place not in sent:
                missing = _wrong(_not_found(fault, place in columns), prompt, columns.get(place))
                self.elsewhere.setdefault(fault.file, self._told(row, missing))
        if wrong:
            raise TableError(*wrong)

    def _told(self, row: Row, wrong: Wrong) -> tuple[str, str]:
        """The row that has a fault, if it is not that of all rows, and the fault."""
        if wrong.column in self._common and wrong.column not in row.overrides:
            return "", _as_set(wrong)
        return str(row) if wrong.column else "", str(wrong)

    def jobs(self, rows: Iterable[Row]) -> Iterator[Job]:
        """The jobs of rows that were checked, each made when it is asked for."""
        seen = Counter[bytes]()
        for row in rows:
            overrides = self.overrides(row)
            prompt, files = self._fitted(overrides, row.decimal_comma)
            uploads = tuple(Upload(place, column, path, self._digest(path)) for place, column, path in files)
            content = digest({"prompt": prompt, "files": {".".join(each.place): each.sha256 for each in uploads}})[:32]
            twin = bytes.fromhex(content)
            seen[twin] += 1
            whole = replace(row, overrides=overrides)
            yield Job(f"{content}-{seen[twin]}", whole, prompt, uploads)

    def overrides(self, row: Row) -> dict[str, Any]:
        """The row's values, and those for every row that it does not have itself, by column."""
        own = self.workflow.values(row.overrides)
        return dict({**self._common_values, **own}.values())

    def _fitted(
        self, overrides: Mapping[str, Any], decimal_comma: bool
    ) -> tuple[Prompt, list[tuple[Place, str, Path]]]:
        """The workflow with a row's values, and the files that they name."""
        prompt = self.workflow.apply(overrides, decimal_comma)
        return prompt, [found for column in overrides if (found := self._file(column, overrides[column], prompt))]

    def _file(self, column: str, value: Any, prompt: Prompt) -> tuple[Place, str, Path] | None:
        """Place, column and path if a value names a file here, for an input that files are uploaded for.

        Which inputs those are the host says, so it could ask for any file: it gets those in allowed folders only.
        """
        place = self.workflow.place(column)
        spec = self.workflow.spec(place, column, prompt)
        if not spec.takes_files:
            return None
        path = self._folder / str(value)
        if not _is_file(path):
            return None
        if not any(folder in path.resolve().parents for folder in self._allowed):
            text = (
                f"{value} lies outside {self._folder}, and only files inside are sent to the host. Allow its folder "
                f"with --upload-from {path.resolve().parent}."
            )
            raise TableError(Wrong(text, column))
        return place, column, path

    def _digest(self, path: Path) -> str:
        """Read once, not once a row."""
        about = path.stat()
        known = str(path), about.st_size, about.st_mtime_ns
        if known not in self._digests:
            self._digests[known] = digest(path)
        return self._digests[known]


def _as_set(wrong: Wrong) -> str:
    """What is wrong with a column that --set gave."""
    return f"--set {wrong.column}: {wrong.text}"


def _wrong(fault: Fault, prompt: Prompt, column: str | None) -> Wrong:
    if column:
        return Wrong(f"{fault.text}.", column)
    if not fault.node:
        return Wrong(f"{fault.text[0].upper()}{fault.text[1:]}.")
    kind, name = prompt[fault.node]["class_type"], f" {fault.name}:" if fault.name else ""
    return Wrong(f"Node {fault.node} ({kind}):{name} {fault.text}.")


def _not_found(fault: Fault, has_column: bool) -> Fault:
    """A file that the host may have, said as if it had not."""
    why = "; write / between folders" if "\\" in fault.file else ""
    if has_column:
        return fault._replace(text=f"{fault.file} is neither beside the table nor in ComfyUI's input folder{why}")
    return fault._replace(
        text=f"{fault.file} is not in ComfyUI's input folder{why}; to have it sent, name it in a column"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name no file can have: too long, or with a NUL
        return False
