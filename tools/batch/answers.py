"""What the host says of a workflow that it refuses, that failed, or that is done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from batch.files import is_file_name

MOST_FILES = 10_000
MOST_TEXT = 10_000


class Unusable(RuntimeError):
    """The host's answer is not one that ComfyUI gives."""


@contextlib.contextmanager
def understood(what: str) -> Iterator[None]:
    """Turns the many ways in which an answer can be of another shape into one.

    Raises: Unusable.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Unusable(f"The host's answer about {what} cannot be used: {type(error).__name__}: {error}") from error


def describe_refusal(answer: Mapping[str, Any]) -> str:
    """The host's answer to a refused prompt as text: one line per node and reason."""
    with understood("a workflow that it refuses"):
        lines = [str((answer.get("error") or {}).get("message", "The host refused the workflow"))]
        for node_id, node in (answer.get("node_errors") or {}).items():
            for error in node["errors"]:
                where = f"node {node_id} ({node['class_type']})"
                lines.append(f"{where}: {error['message']}: {error.get('details', '')}")
    return printable("\n".join(lines))


def describe_failure(messages: Sequence[Sequence[Any]]) -> str:
    """Node, type and exception of the first failure among a history entry's status messages."""
    with understood("a workflow that failed"):
        for name, data in messages:
            if name == "execution_error":
                text = f"node {data['node_id']} ({data['node_type']}): {data['exception_message'].strip()}"
                return printable(text)
            if name == "execution_interrupted":
                return printable(f"node {data['node_id']} ({data['node_type']}): interrupted")
    return "The workflow failed without a message; see the host's log"


def printable(text: str) -> str:
    """Text from elsewhere, the beginning of it, without what would steer the terminal."""
    unknown = "\N{REPLACEMENT CHARACTER}"
    return "".join(each if each == "\n" or each.isprintable() else unknown for each in text[:MOST_TEXT])


def failure(entry: Mapping[str, Any]) -> str | None:
    """Why a workflow that has ended failed, or None if it did not."""
    with understood("a workflow that ended"):
        status = entry["status"]
        return None if status["status_str"] == "success" else describe_failure(status["messages"])


def was_interrupted(entry: Mapping[str, Any]) -> bool:
    """Whether a workflow that has ended was cancelled while it ran."""
    with understood("a workflow that ended"):
        messages = entry["status"].get("messages") or ()
        return any(message[0] == "execution_interrupted" for message in messages)


def files_of(entry: Mapping[str, Any]) -> list[dict[str, str]]:
    """All files a finished workflow named, wherever its nodes put them in their output.

    Returns: filename, subfolder and type (output, temp, or a folder of models) of each.
    Raises: Unusable when there are no outputs, or a file has a name that no file can have.
    """
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    with understood("what a workflow made"):
        waiting: list[Any] = [dict(entry["outputs"])]
        while waiting:
            each = waiting.pop()
            if isinstance(each, dict) and "filename" in each:
                file = _file(each)
                found[file["type"], file["subfolder"], file["filename"]] = file
            elif isinstance(each, (dict, list)):
                waiting += reversed(each.values() if isinstance(each, dict) else each)
        if len(found) > MOST_FILES:
            raise ValueError(f"{len(found)} files")
    return list(found.values())


def _file(listed: Mapping[str, Any]) -> dict[str, str]:
    name, subfolder, kind = listed["filename"], listed.get("subfolder") or "", listed.get("type") or "output"
    if not is_file_name(own_name(name)):
        raise ValueError(f"{str(name)[:80]!r} is not the name of a file")
    if not isinstance(subfolder, str) or not isinstance(kind, str):
        raise TypeError(f"the place of {name!r} is no text")
    return {"filename": name, "subfolder": subfolder, "type": kind}


def own_name(name: Any) -> str:
    """The last part of a file's name; some nodes put their folder before it, on any system."""
    if not isinstance(name, str):
        raise TypeError(f"{str(name)[:80]!r} is not the name of a file")
    return name.replace("\\", "/").rpartition("/")[2]
