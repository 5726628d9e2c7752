"""A skipped test must not pass for a test that ran."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_skips import main


def report(folder: Path, *skipped: str) -> Path:
    cases = "".join(f'<testcase classname="t" name="n"><skipped message="{each}"/></testcase>' for each in skipped)
    path = folder / "report.xml"
    path.write_text(f'<testsuites><testsuite><testcase classname="t" name="ok"/>{cases}</testsuite></testsuites>')
    return path


def test_no_skip_is_fine(tmp_path: Path) -> None:
    assert main(report(tmp_path)) == 0


def test_accepted_skip_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(report(tmp_path, "optional: needs a GPU")) == 0
    assert "skipped: t.n: optional: needs a GPU" in capsys.readouterr().out


def test_other_skip_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(report(tmp_path, "optional: needs a GPU", "not today")) == 1
    assert "1 skipped without a reason" in capsys.readouterr().err
