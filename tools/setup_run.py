"""Runs the commands of the set-up, shows what they say, and turns the usual failures into advice."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

ADVICE = (
    (("No space left on device", "Disk quota exceeded"),
     "The disk is full; about 10 GB are needed here and in the package cache. Free some space and run it again."),
    (("DO NOT MATCH THE HASHES", "Hash mismatch"),
     "A downloaded file is not the expected one; clear the package cache (`pip cache purge`) and run it again."),
    (("Temporary failure in name resolution", "dns error", "Network is unreachable", "Connection refused",
      "ConnectTimeout", "NewConnectionError", "NameResolutionError", "tcp connect error", "timed out",
      "error sending request", "Could not connect", "ProxyError"),
     "The package index cannot be reached; check the network (or proxy settings) and run it again."),
    (("No matching distribution found", "No solution found", "has no wheels with a matching",
      "no version of", "not compatible with"),
     "A pinned package has no build for this Python or platform; use Linux with Python 3.10 to 3.13, for example "
     "`make clean setup PYTHON=python3.12`."),
)  # fmt: skip


class SetupError(Exception):
    """One sentence: what is wrong and what to do."""


def step(text: str) -> None:
    """Tells the user what happens now."""
    print(f"setup: {text}", flush=True)


def advice(output: str) -> str:
    """What to do about a failed command, from what it printed."""
    for signs, text in ADVICE:
        if any(sign in output for sign in signs):
            return text
    return "The lines above say why; run it again once that is mended."


def run(command: Sequence[str | Path], check: bool = True, quiet: bool = False) -> int:
    """Runs a command, passing on its output.

    Returns: the exit status.
    Raises: SetupError with advice when `check` is set and the command fails.
    """
    words = [str(word) for word in command]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as child:
        lines = []
        for line in child.stdout or ():
            lines.append(line)
            if not quiet:
                print(f"  {line}", end="", flush=True)
    if check and child.returncode != 0:
        tool = " ".join(word for word in words[1:5] if not word.startswith("/"))
        raise SetupError(f"`{tool}` ended with status {child.returncode}. {advice(''.join(lines))}")
    return child.returncode
