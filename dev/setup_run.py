"""Runs the commands of the set-up, shows what they say, and turns the usual failures into advice."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

STAMP = ".refattention-stamp"
DISK_FULL = ("No space left on device", "Disk quota exceeded")
WRONG_HASH = ("DO NOT MATCH THE HASHES", "Hash mismatch")
NO_NETWORK = (
    "Temporary failure in name resolution",
    "NameResolutionError",
    "NewConnectionError",
    "ConnectTimeout",
    "ProxyError",
    "dns error",
    "tcp connect error",
    "error sending request",
    "Network is unreachable",
    "Connection refused",
    "timed out",
)
NO_BUILD = ("No matching distribution found", "No solution found", "has no wheels with a matching")
ADVICE = {
    DISK_FULL: "The disk is full: about 10 GB are needed here and in the cache. Free some space first.",
    WRONG_HASH: "A downloaded file is not the expected one. Clear the cache with `pip cache purge`.",
    NO_NETWORK: "The package index cannot be reached. Check the network and the proxy settings.",
    NO_BUILD: "A pinned package has no build for this system. Use Linux and Python 3.10 to 3.13, for example "
    "`make clean setup PYTHON=python3.12`.",
}


class SetupError(Exception):
    """One sentence: what is wrong and what to do."""


def step(text: str) -> None:
    """Tells the user what happens now."""
    print(f"setup: {text}", flush=True)


def advice(output: str) -> str:
    """What to do about a failed command, from what it printed."""
    for signs, text in ADVICE.items():
        if any(sign in output for sign in signs):
            return text
    return "The lines above say why; run it again once that is mended."


def run(command: Sequence[str | Path], check: bool = True, quiet: bool = False) -> int:
    """Runs a command, passing on its output.

    Returns: the exit status.
    Raises: SetupError with advice when `check` is set and the command fails.
    """
    words = [str(word) for word in command]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as child:
        lines = []
        for line in child.stdout or ():
            lines.append(line)
            if not quiet:
                print(f"  {line}", end="", flush=True)
    if check and child.returncode != 0:
        tool = " ".join(word for word in words[2:5] if not word.startswith("/"))
        raise SetupError(f"`{tool}` ended with status {child.returncode}. {advice(''.join(lines))}")
    return child.returncode


def set_aside(path: Path) -> Path:
    """Moves what may hold a user's files out of the way, says where to, and returns the new place."""
    number, aside = 1, path.with_name(f"{path.name}-before")
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}-before-{number}")
    path.rename(aside)
    step(f"{path.name} as it was is kept in {aside}; move over what you need, then remove it")
    return aside
