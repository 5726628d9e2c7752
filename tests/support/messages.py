"""What the pack's error messages have in common."""

from __future__ import annotations

import re

import pytest

# What a library or the interpreter says when nobody looked at the input first
RAW = re.compile(
    r"shape mismatch|size mismatch|must match the size|NoneType|has no attribute|KeyError|Traceback|"
    r"mat1 and mat2|not subscriptable|object is not|Expected all tensors|state_dict for|invalid load key",
    re.IGNORECASE,
)


def is_clear(message: str) -> bool:
    """One or two sentences of English that end with a full stop and are no one else's complaint."""
    sentences = [part for part in re.split(r"(?<=[.!?])\s+(?=[A-Z])", message.strip()) if part]
    return (
        1 <= len(sentences) <= 2
        and len(message) > 20
        and message.strip()[-1] in ".!?"
        and "\n" not in message.strip()
        and not RAW.search(message)
    )


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the pack logged. The host logs beside it, for instance that a model of an earlier test is still alive."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("refattention")]
