"""The tests of two files in a process of their own: torch never forgets a device that counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(900)
def test_on_a_second_device() -> None:
    folder = Path(__file__).parent
    files = [str(folder / f"{name}on_second_device.py") for name in ("", "workflows_")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder.parents[1])
    assert done.returncode == 0, done.stdout[-6000:]
