"""Tables, overrides and the ledger of a batch, without a host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from batch.ledger import DONE, FAILED, Ledger, LedgerError
from batch.overrides import apply, input_files, seeds
from batch.table import TableError, read_table

INFO: dict[str, Any] = {
    "KSampler": {
        "input": {"required": {"seed": ["INT", {}], "cfg": ["FLOAT", {}], "model": ["MODEL"], "name": [["a", "b"]]}}
    },
    "Text": {"input": {"required": {"text": ["STRING", {}], "on": ["BOOLEAN", {}]}}},
    "LoadImage": {"input": {"required": {"image": [["x.png"], {"image_upload": True}]}}},
}
PROMPT: dict[str, Any] = {
    "1": {"class_type": "KSampler", "inputs": {"seed": 1, "cfg": 2.0, "model": ["9", 0], "name": "a"}},
    "2": {"class_type": "Text", "inputs": {"text": "x", "on": True}, "_meta": {"title": "Prompt"}},
    "3": {"class_type": "Text", "inputs": {"text": "y", "on": True}},
    "4": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
}
ABOUT = {"workflow_sha256": "w"}


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_table(tmp_path: Path) -> None:
    text = '\ufeffname,KSampler.seed,Prompt.text\ncat,7,"a, b"\n,8,\n'
    first, second = read_table(written(tmp_path, "t.csv", text))
    assert (first.name, first.overrides) == ("cat", {"KSampler.seed": "7", "Prompt.text": "a, b"})
    assert (second.name, second.overrides) == ("0002", {"KSampler.seed": "8"})


def test_jsonl_table(tmp_path: Path) -> None:
    (row,) = read_table(written(tmp_path, "t.jsonl", '\n{"1.seed": 7, "1.cfg": null}\n'))
    assert (row.number, row.name, row.overrides) == (1, "0001", {"1.seed": 7})


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("t.txt", "a", "a table is a .csv or a .jsonl"),
        ("t.csv", "a,b\n1\n", "line 2: it has more or fewer cells"),
        ("t.csv", "a,b\n1,2,3\n", "line 2: it has more or fewer cells"),
        ("t.csv", "a,b\n", "has no rows"),
        ("t.jsonl", "{\n", "line 1"),
        ("t.jsonl", "[1]\n", "an object like"),
        ("t.csv", "name,a\n../x,1\n", "cannot be the name of a folder"),
    ],
)
def test_bad_table_says_where(tmp_path: Path, name: str, text: str, reason: str) -> None:
    with pytest.raises(TableError, match=reason):
        read_table(written(tmp_path, name, text))


def test_values_get_the_type_of_the_input() -> None:
    values = {"KSampler.seed": "7", "1.cfg": "2", "1.name": "b", "Prompt.text": "5", "3.on": "no"}
    changed = apply(PROMPT, values, INFO)
    assert changed["1"]["inputs"] == {"seed": 7, "cfg": 2.0, "model": ["9", 0], "name": "b"}
    assert changed["2"]["inputs"]["text"] == "5" and changed["3"]["inputs"]["on"] is False
    assert PROMPT["1"]["inputs"]["seed"] == 1 and seeds(changed) == {"1.seed": 7}


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("seed", 1, "write node.input"),
        ("Nothing.seed", 1, "the workflow has no node 'Nothing'"),
        ("Text.text", "a", "several nodes answer to 'Text'; use an id, 2 or 3"),
        ("KSampler.sed", 1, "KSampler has no input 'sed'"),
        ("KSampler.seed", "many", "'many' is no INT"),
        ("KSampler.seed", True, "True is no INT"),
        ("3.on", "perhaps", "'perhaps' is no BOOLEAN"),
    ],
)
def test_bad_override_says_why(column: str, value: Any, reason: str) -> None:
    with pytest.raises(TableError, match=reason):
        apply(PROMPT, {column: value}, INFO)


def test_only_pictures_on_this_machine_are_uploaded(tmp_path: Path) -> None:
    picture = written(tmp_path, "a.png", "")
    assert list(input_files(PROMPT, {"LoadImage.image": "a.png", "1.name": "a.png"}, INFO, tmp_path)) == [
        ("LoadImage.image", picture)
    ]
    assert not list(input_files(PROMPT, {"LoadImage.image": "b.png"}, INFO, tmp_path))


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
