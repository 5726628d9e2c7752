"""The ledger of a batch: exactly one result a row, nothing of anyone else's touched."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from batch import ledger as ledger_module
from batch.ledger import DONE, FAILED, Ledger, LedgerError

ABOUT = {"workflow_sha256": "w"}


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def finish(ledger: Ledger, key: str, name: str) -> str:
    (ledger.partial(key) / "picture.png").write_bytes(b"p")
    folder: str = ledger.add(key, name, {"state": DONE})["folder"]
    return folder


def test_ledger_goes_on_where_it_was(tmp_path: Path) -> None:
    with Ledger(tmp_path, ABOUT) as ledger:
        run = ledger.run
        assert finish(ledger, "a", "cat") == "cat"
        ledger.add("b", "dog", {"state": FAILED, "error": "no"})
    with Ledger(tmp_path, ABOUT) as ledger:
        assert ledger.run == run
        assert ledger.is_done("a") and not ledger.is_done("b") and not ledger.is_done("c")
    assert (tmp_path / "cat" / "picture.png").is_file()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    written(tmp_path / "cat", "mine.txt", "mine")
    with Ledger(tmp_path, ABOUT) as ledger:
        assert finish(ledger, "a", "cat") == "cat_2"
        assert finish(ledger, "b", "cat") == "cat_3"
    assert [path.name for path in (tmp_path / "cat").iterdir()] == ["mine.txt"]


def test_unfinished_line_and_unfinished_rename(tmp_path: Path) -> None:
    """Killed after the line of row a, before its folder was renamed, and in the middle of the line of row b."""
    with Ledger(tmp_path, ABOUT) as ledger:
        finish(ledger, "a", "cat")
    (tmp_path / "cat").rename(tmp_path / ".partial" / "a")
    with open(tmp_path / "manifest.jsonl", "a", encoding="utf-8") as file:
        file.write('{"key": "b", "sta')
    with Ledger(tmp_path, ABOUT) as ledger:
        assert ledger.is_done("a") and not ledger.is_done("b")
        assert (tmp_path / "cat" / "picture.png").is_file()
        finish(ledger, "b", "dog")
    lines = (tmp_path / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line).get("key") for line in lines] == [None, "a", "b"]


def test_other_runner_and_other_workflow_are_kept_out(tmp_path: Path) -> None:
    with Ledger(tmp_path, ABOUT), pytest.raises(LedgerError, match="Another run writes"):
        Ledger(tmp_path, ABOUT).__enter__()
    with pytest.raises(LedgerError, match="results of another workflow"):
        Ledger(tmp_path, {"workflow_sha256": "v"}).__enter__()


@pytest.mark.parametrize(
    "content",
    [
        b"one line without an end",
        b"one line\nanother",
        b"{}\n{}",
        b'{"run": 1, "workflow_sha256": "w"}',
        b"[" * 200_000,
    ],
)
def test_manifest_of_someone_else_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.jsonl").write_bytes(content)
    with pytest.raises(LedgerError, match="was not made by this command"):
        Ledger(tmp_path, ABOUT).__enter__()
    assert (tmp_path / "manifest.jsonl").read_bytes() == content and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["manifest.jsonl", ".lock", ".partial"])
def test_links_and_files_of_someone_else_are_left_as_they_are(tmp_path: Path, name: str) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / name).symlink_to(mine / "elsewhere")
    with pytest.raises(LedgerError, match="was not made by this command"):
        Ledger(folder, ABOUT).__enter__()
    (folder / name).unlink()
    if name != "manifest.jsonl":
        written(folder, name, "mine")
        with pytest.raises(LedgerError, match="was not made by this command"):
            Ledger(folder, ABOUT).__enter__()
        assert (folder / name).read_text() == "mine"
    assert list(mine.iterdir()) == []


def test_last_line_without_an_end_is_kept_if_it_is_whole(tmp_path: Path) -> None:
    with Ledger(tmp_path, ABOUT) as ledger:
        finish(ledger, "a", "cat")
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes().rstrip(b"\n"))
    with Ledger(tmp_path, ABOUT) as ledger:
        assert ledger.is_done("a")
        finish(ledger, "b", "dog")
    assert [json.loads(line).get("key") for line in manifest.read_bytes().splitlines()] == [None, "a", "b"]


def test_torn_line_after_lines_that_windows_ended(tmp_path: Path) -> None:
    with Ledger(tmp_path, ABOUT) as ledger:
        finish(ledger, "a", "\u753b")
        finish(ledger, "b", "dog")
    manifest = tmp_path / "manifest.jsonl"
    whole = manifest.read_bytes().replace(b"\n", b"\r\n")
    manifest.write_bytes(whole + b'{"key": "c", "sta')
    with Ledger(tmp_path, ABOUT) as ledger:
        assert ledger.is_done("a") and ledger.is_done("b")
    assert manifest.read_bytes() == whole


@pytest.mark.parametrize(
    "record",
    [
        {"key": "../a", "state": DONE, "folder": "cat"},
        {"key": "a", "state": DONE, "folder": "../cat"},
        {"key": "a", "state": DONE, "folder": "/tmp/cat"},
        {"key": "a", "state": DONE},
        {"key": "a", "state": "well"},
        {"key": 1, "state": FAILED},
        ["a"],
    ],
)
def test_line_that_leads_outside_moves_nothing(tmp_path: Path, record: object) -> None:
    results = tmp_path / "results"
    with Ledger(results, ABOUT) as ledger:
        ledger.partial("a")
    (tmp_path / "a").mkdir()
    before = (results / "manifest.jsonl").read_bytes() + json.dumps(record).encode() + b"\n" + b'{"torn'
    (results / "manifest.jsonl").write_bytes(before)
    with pytest.raises(LedgerError, match="line 2"):
        Ledger(results, ABOUT).__enter__()
    assert (results / "manifest.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "results"]
    assert (results / ".partial" / "a").is_dir()


def test_link_that_leads_nowhere_counts_as_taken(tmp_path: Path) -> None:
    (tmp_path / "cat").symlink_to(tmp_path / "nothing")
    with Ledger(tmp_path, ABOUT) as ledger:
        assert finish(ledger, "a", "cat") == "cat_2"
        finish(ledger, "b", "dog")
    # Someone put something there between the line and the rename, then the runner was killed.
    (tmp_path / "dog").rename(tmp_path / ".partial" / "b")
    (tmp_path / "dog").symlink_to(tmp_path / "nothing")
    for _ in range(2):
        with Ledger(tmp_path, ABOUT) as ledger:
            assert ledger.last["b"]["folder"] == "dog_2"
    assert (tmp_path / "dog_2" / "picture.png").is_file() and (tmp_path / "dog").is_symlink()


def test_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(tmp_path, ABOUT) as ledger:
        before = (tmp_path / "manifest.jsonl").read_bytes()

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(ledger_module.os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                ledger.add("a", "cat", {"state": FAILED})
        assert (tmp_path / "manifest.jsonl").read_bytes() == before
        ledger.add("b", "dog", {"state": FAILED})
    with Ledger(tmp_path, ABOUT) as ledger:
        assert ledger.last.keys() == {"b"}


def test_cost_of_a_row_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: what a row looks at, with a name that is there 3000 times."""
    looked: list[str] = []
    lexists = os.path.lexists
    with Ledger(tmp_path, ABOUT) as ledger:
        monkeypatch.setattr(ledger_module.os, "fsync", lambda _: None)
        monkeypatch.setattr(ledger_module.os.path, "lexists", lambda path: looked.append(str(path)) or lexists(path))
        for number in range(3000):
            looked.clear()
            folder = ledger.add(f"k{number}", "cat", {"state": DONE})["folder"]
            assert folder == ("cat" if number == 0 else f"cat_{number + 1}") and len(looked) <= 2
