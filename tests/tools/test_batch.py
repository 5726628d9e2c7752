"""Tables, overrides and the ledger of a batch, without a host."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from batch.files import shortened
from batch.jobs import Job, Plan
from batch.overrides import Workflow, seeds
from batch.table import Faults, Row, TableError, check_table, read_table

INFO: dict[str, Any] = {
    "KSampler": {
        "input": {"required": {"seed": ["INT", {}], "cfg": ["FLOAT", {}], "model": ["MODEL"], "name": [["a", "b"]]}}
    },
    "Text": {"input": {"required": {"text": ["STRING", {}], "on": ["BOOLEAN", {}]}}},
    "LoadImage": {"input": {"required": {"image": [["x.png"], {"image_upload": True}]}}, "output_node": True},
}
PROMPT: dict[str, Any] = {
    "1": {"class_type": "KSampler", "inputs": {"seed": 1, "cfg": 2.0, "model": ["9", 0], "name": "a"}},
    "2": {"class_type": "Text", "inputs": {"text": "x", "on": True}, "_meta": {"title": "Prompt"}},
    "3": {"class_type": "Text", "inputs": {"text": "y", "on": True}},
    "4": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
}


def apply(prompt: dict[str, Any], overrides: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    return Workflow(prompt, info).apply(overrides)


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
        ("t.xlsx", "a", "a table is a .csv, .tsv, .txt or .jsonl"),
        ("t.csv", "a,b\n1\n", "line 2: it has more or fewer cells"),
        ("t.csv", "a,b\n1,2,3\n", "line 2: it has more or fewer cells"),
        ("t.csv", "a,b\n", "has no rows"),
        ("t.csv", 'a.b,c.d\n1,2\n"3,4\n5,6\n', "after line 2: a quotation mark is not closed"),
        ("t.csv", 'a.b,c.d\n1,"2"3\n', "after line 1: a quotation mark is not closed, or stands inside"),
        (
            "t.csv",
            f"a.b,c.d\n1,{'x' * 200_000}\n",
            "after line 1: .* A .jsonl table may have cells of more than 131072",
        ),
        ("t.jsonl", "{\n", "line 1"),
        ("t.jsonl", "[1]\n", "an object like"),
        ("t.csv", "name,a\n../x,1\n", "cannot be the name of a folder"),
        ("t.csv", "name,a\n" + "\u753b" * 90 + ",1\n", "cannot be the name of a folder"),
        ("t.csv", "name,a\nManifest.jsonl,1\n", "cannot be the name of a folder"),
        ("t.csv", "name,a\nx.,1\n", "cannot be the name of a folder"),
        ("t.csv", "a.b,a.b\n1,2\n", "column 'a.b' is there twice"),
        ("t.csv", "a.b,\n1,2\n", "line 2: '2' stands in a column without a name"),
        ("t.jsonl", '{"a.b": 1, "a.b": 2}', "line 1: 'a.b' is there twice"),
        ("t.jsonl", "[" * 200_000, "line 1: its JSON is nested too deeply"),
    ],
)
def test_bad_table_says_where(tmp_path: Path, name: str, text: str, reason: str) -> None:
    with pytest.raises(TableError, match=reason):
        list(read_table(written(tmp_path, name, text)))


def test_all_faults_of_a_table_are_said_at_once(tmp_path: Path) -> None:
    faults = Faults()
    check_table(written(tmp_path, "t.jsonl", '{\n[1]\n{"name": "a/b"}\n{"1.seed": 1}\n'), faults)
    with pytest.raises(TableError) as raised:
        faults.raise_any()
    assert [str(each).partition(": ")[0].rpartition("/")[2] for each in raised.value.every] == [
        "t.jsonl, line 1",
        "t.jsonl, line 2",
        "Row 3",
    ]


def test_same_fault_of_many_rows_is_said_once_and_many_faults_are_counted() -> None:
    faults = Faults()
    for number in range(1, 4):
        faults.add(str(Row(number, "x", {})), "bad")
    for number in range(50):
        faults.add(str(Row(9, "y", {})), f"bad {number}")
    with pytest.raises(TableError) as raised:
        faults.raise_any()
    said = list(map(str, raised.value.every))
    assert said[0] == "Row 1 (x) and 2 others: bad"
    assert len(said) == 21 and said[-1] == "… and 31 more."


def test_name_may_begin_with_a_capital(tmp_path: Path) -> None:
    (row,) = read_table(written(tmp_path, "t.csv", "Name,KSampler.seed\ncat,7\n"))
    assert (row.name, row.overrides) == ("cat", {"KSampler.seed": "7"})


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
        (
            "id,KSampler.seed",
            1,
            "no node 'id,KSampler'; it has .* each but name is node.input",
        ),
        ("Text.text", "a", "several nodes answer to 'Text'; use an id, 2 or 3"),
        ("KSampler.sed", 1, "KSampler has no input 'sed'; it has seed, cfg, model, name"),
        ("KSampler.seed", "many", "'many' is not a whole number"),
        ("KSampler.seed", True, "True is not a whole number"),
        ("KSampler.seed", 48.9, "48.9 is not a whole number"),
        ("KSampler.seed", "48.9", "'48.9' is not a whole number"),
        ("KSampler.seed", "1_0", "'1_0' is not a whole number"),
        ("1.cfg", "nan", "'nan' is not a number"),
        ("1.cfg", "0,5", "'0,5' is not a number: write a point for the comma"),
        ("1.model", "sd15", "model is connected to another node"),
        ("3.on", "perhaps", "'perhaps' is neither true nor false"),
    ],
)
def test_bad_override_says_why(column: str, value: Any, reason: str) -> None:
    with pytest.raises(TableError, match=reason):
        apply(PROMPT, {column: value}, INFO)


def jobs(folder: Path, *rows: dict[str, Any], allowed: tuple[Path, ...] = (), info: Any = INFO) -> list[Job]:
    plan = Plan(Workflow(PROMPT, info), {}, folder, allowed)
    table = [Row(number, f"{number:04}", values) for number, values in enumerate(rows, 1)]
    faults = Faults()
    assert plan.check(table, faults) == len(table)
    faults.raise_any()
    return list(plan.jobs(table))


def test_only_pictures_on_this_machine_are_uploaded(tmp_path: Path) -> None:
    written(tmp_path, "a.png", "")
    (job,) = jobs(tmp_path, {"LoadImage.image": "a.png", "1.name": "a.png"})
    assert job.inputs.keys() == {"LoadImage.image"} and job.uploads[0].path == tmp_path / "a.png"
    assert not jobs(tmp_path, {"LoadImage.image": "b.png"})[0].uploads


def test_key_is_of_value_and_content_whatever_the_host_calls_the_file(tmp_path: Path) -> None:
    written(tmp_path, "a.png", "one")
    row = {"LoadImage.image": "a.png"}
    first, twin = jobs(tmp_path, row, row)
    assert first.key[-2:] == "-1" and twin.key == first.key[:-1] + "2"
    assert first.uploads[0].name == f"{first.uploads[0].sha256}-a.png"
    sent = first.with_names({("4", "image"): "something else.png"})
    assert sent["4"]["inputs"]["image"] == "something else.png" and first.prompt["4"]["inputs"]["image"] == "a.png"
    written(tmp_path, "a.png", "two!")
    assert jobs(tmp_path, row)[0].key != first.key


def test_name_of_an_upload_is_one_a_file_can_have(tmp_path: Path) -> None:
    name = "\u753b" * 80 + ".png"
    written(tmp_path, name, "")
    (job,) = jobs(tmp_path, {"LoadImage.image": name})
    sent = job.uploads[0].name
    assert len(sent.encode()) <= 255 and sent.startswith(job.uploads[0].sha256) and sent.endswith("\u753b.png")
    name = "v1." + "x" * 240  # all behind the point is an ending
    written(tmp_path, name, "")
    (job,) = jobs(tmp_path, {"LoadImage.image": name})
    assert len(job.uploads[0].name) == 255 and job.uploads[0].name.startswith(f"{job.uploads[0].sha256}-.xxx")


def test_a_name_with_an_ending_that_is_too_long_is_cut() -> None:
    assert shortened("cat", ".png", 6) == "ca.png"
    assert shortened("cat", "_2." + "\u753b" * 90) == "_2." + "\u753b" * 84


def test_file_outside_of_the_folder_is_sent_only_if_that_is_allowed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir(), outside.mkdir()
    secret = written(outside, "secret.png", "")
    (inside / "link.png").symlink_to(secret)
    for value in (str(secret), "../out/secret.png", "link.png"):
        with pytest.raises(TableError, match=r"lies outside .*--upload-from"):
            jobs(inside, {"LoadImage.image": value})
        assert jobs(inside, {"LoadImage.image": value}, allowed=(outside,))[0].uploads


def test_host_that_calls_a_text_a_file_gets_none(tmp_path: Path) -> None:
    written(tmp_path, "a.png", "secret")
    hostile = json.loads(json.dumps(INFO))
    hostile["Text"]["input"]["required"]["text"] = ["STRING", {"image_upload": True}]
    assert not jobs(tmp_path, {"Prompt.text": "a.png"}, info=hostile)[0].uploads


def test_two_columns_for_one_input_are_refused_but_a_row_wins_over_what_holds_for_all(tmp_path: Path) -> None:
    twice = {"1.seed": 1, "KSampler.seed": 2}
    with pytest.raises(TableError, match=r"^Column 'KSampler.seed': it is the same input as '1.seed'"):
        apply(PROMPT, twice, INFO)
    with pytest.raises(TableError, match=r"^--set KSampler.seed: it is the same input as '1.seed'"):
        Plan(Workflow(PROMPT, INFO), twice, tmp_path)
    plan = Plan(Workflow(PROMPT, INFO), {"KSampler.seed": 5, "1.cfg": 3}, tmp_path)
    (job,) = plan.jobs([Row(1, "a", {"1.seed": 7})])
    assert (job.prompt["1"]["inputs"]["seed"], job.prompt["1"]["inputs"]["cfg"]) == (7, 3.0)


def test_large_table_is_checked_in_bounded_memory(tmp_path: Path) -> None:
    """Rows are never all there at once; the peak does not grow with their number."""
    peaks = []
    for number in (200, 2000):
        lines = (f'{{"KSampler.seed": {seed}, "Prompt.text": "{"x" * 2000}"}}' for seed in range(number))
        path = written(tmp_path, "t.jsonl", "\n".join(lines))
        plan = Plan(Workflow(PROMPT, INFO), {}, tmp_path)
        tracemalloc.start()
        assert plan.check(read_table(path), Faults()) == number
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000
