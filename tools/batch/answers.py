"""What the host says of a workflow that it refuses, or that failed, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def describe_refusal(answer: Mapping[str, Any]) -> str:
    """The host's answer to a refused prompt as text: one line per node and reason."""
    lines = [str(answer.get("error", {}).get("message", "The host refused the workflow"))]
    for node_id, node in answer.get("node_errors", {}).items():
        for error in node["errors"]:
            where = f"node {node_id} ({node['class_type']})"
            lines.append(f"{where}: {error['message']}: {error.get('details', '')}")
    return "\n".join(lines)


def describe_failure(messages: Sequence[Sequence[Any]]) -> str:
    """Node, type and exception of the first failure among a history entry's status messages."""
    for name, data in messages:
        if name == "execution_error":
            return f"node {data['node_id']} ({data['node_type']}): {data['exception_message'].strip()}"
        if name == "execution_interrupted":
            return f"node {data['node_id']} ({data['node_type']}): interrupted"
    return "The workflow failed without a message; see the host's log"
