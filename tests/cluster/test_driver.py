"""Rows, workers and budgets without Ray: workers that fail, get lost, differ or finish behind the driver's back."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from batch.jobs import Job, Plan
from batch.ledger import DONE, FAILED, Ledger
from batch.overrides import Workflow
from batch.table import Faults, Row, read_table
from cluster.actor import LOST, TAKEN
from cluster.command import _noted
from cluster.connection import ClusterError
from cluster.driver import Budget, Driver, Summary
from cluster.fingerprint import FileDigests, agreed, differences, tree_digest, without_files
from cluster.fleet import Fleet, WorkerLost
from cluster.objects import ObjectPlace, ObjectResults
from cluster.places import Place, SharedFolder, Taken
from cluster.results import FolderResults, Results
from tqdm import tqdm

ABOUT = {"workflow": "w", "workflow_sha256": "0" * 64}
PROMPT = {"1": {"class_type": "Stub", "inputs": {"seed": 0}}}
ONCE = Budget(retries=1, losses=1)
SAME = {"ComfyUI": "0.30.0", "model a": "1"}


def job(number: int) -> Job:
    return Job(f"{number:032x}-1", Row(number, f"row-{number}", {"1.seed": number}), PROMPT)


class Fake:
    """A worker whose attempts end as `fate` says: by row, one after another."""

    def __init__(self, name: str, place: Place, fate: dict[int, list[str]], fingerprint: dict[str, str] = SAME) -> None:
        self.name, self._place, self._fate, self._fingerprint = name, place, fate, fingerprint
        self.runs: Counter[int] = Counter()
        self.life = 0

    async def start(self) -> dict[str, Any]:
        if "never" in self._fate.get(0, []):
            raise OSError("no such folder")
        return {"life": self.life, "node_id": self.name, "node": "here"}

    async def object_info(self) -> dict[str, Any]:
        return {}

    async def fingerprint(self, classes: Iterable[str], names: Iterable[str]) -> dict[str, str]:
        return self._fingerprint

    async def run(self, job: Job, number: int) -> dict[str, Any]:
        await asyncio.sleep(0)
        fates = self._fate.get(job.row.number, [])
        fate = fates.pop(0) if fates else DONE
        outcome = {"attempt": number, "worker": self.name, "versions": {}, "state": fate, "error": fate}
        if fate == TAKEN:
            return outcome
        self.runs[job.row.number] += 1
        if fate == LOST:
            self.life += 1
            raise WorkerLost("it died")
        try:
            folder = self._place.begin(f"{job.key}~{number}")
        except Taken:
            return {**outcome, "state": TAKEN}
        if fate == "final":
            return {**outcome, "state": FAILED, "final": True}
        if fate == DONE:
            (folder / "made.txt").write_text(str(job.row.number))
            self._place.finish(f"{job.key}~{number}", folder, {**outcome, "files": {}})
        return {**outcome, "files": {}}

    async def stop(self) -> None:
        pass

    def end(self) -> None:
        pass


def drive(workers: list[Fake], results: Results, numbers: Iterable[int], budget: Budget = ONCE) -> Summary:
    async def run() -> Summary:
        fleet = Fleet(workers, 0.1, lambda text: None)
        await fleet.compare((), (), "worker-1")
        with tqdm(file=io.StringIO()) as bar:
            return await Driver(fleet, results, budget, bar).run(map(job, numbers))

    return asyncio.run(run())


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()[1:]]


@pytest.mark.parametrize("seed", range(20))
def test_each_row_is_committed_once_or_set_aside_within_its_budget(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    fates = {number: rng.choices((DONE, FAILED, LOST, TAKEN), (4, 1, 1, 1), k=6) for number in range(1, 41)}
    expected = {number for number, fate in fates.items() if is_done(fate)}
    place = SharedFolder(tmp_path)
    with Ledger(tmp_path, ABOUT) as ledger:
        workers = [Fake(f"worker-{number}", place, fates) for number in (1, 2, 3)]
        summary = drive(workers, FolderResults(ledger), range(1, 41))
    committed = [record["row"] for record in records(tmp_path) if record["state"] == DONE]
    assert len(committed) == len(set(committed)) and set(committed) == expected
    assert summary.done == len(expected) and len(summary.reasons) == 40 - len(expected)
    runs = sum((worker.runs for worker in workers), Counter())
    assert max(runs.values()) <= 1 + 1 + 1
    assert all((tmp_path / f"row-{number}" / "made.txt").read_text() == str(number) for number in expected)
    # The budgets outlive the driver, and what was set aside is not tried again.
    with Ledger(tmp_path, ABOUT) as ledger:
        again = [Fake("worker-1", place, {})]
        assert drive(again, FolderResults(ledger), range(1, 41)).reasons == summary.reasons
        assert not again[0].runs
        drive(again, FolderResults(ledger), range(1, 41), Budget(9, 9))
    assert len([record for record in records(tmp_path) if record["state"] == DONE]) == 40


def is_done(fate: list[str]) -> bool:
    """Whether a row with a budget of one failure and one loss gets done before a second of either."""
    seen: Counter[str] = Counter()
    for each in fate:
        seen[each] += 1
        if seen[FAILED] > 1 or seen[LOST] > 1:
            return False
        if each == DONE:
            return True
    return True


@pytest.mark.parametrize("url", [False, True])
def test_what_ended_while_no_driver_listened_is_taken_not_run(tmp_path: Path, url: bool) -> None:
    """Rows 1 and 2 are whole, row 3 lacks its record, row 4 was being committed. Of row 1 two attempts are whole, of
    row 2 a later one was begun."""
    output = tmp_path.as_uri() if url else str(tmp_path)
    fake = Fake("worker-1", ObjectPlace(output) if url else SharedFolder(tmp_path), {})
    with opened(output, tmp_path, url) as results:
        for number, attempt in ((1, 1), (1, 2), (2, 1), (4, 1)):
            asyncio.run(fake.run(job(number), attempt))
        fake._place.begin(f"{job(3).key}~1")
        fake._place.begin(f"{job(2).key}~2")
        if not url:
            os.rename(tmp_path / ".partial" / f"{job(4).key}~1", tmp_path / ".partial" / job(4).key)
        fake.runs.clear()
    with opened(output, tmp_path, url) as results:
        summary = drive([fake], results, range(1, 6))
    assert summary.done == 5 and fake.runs == {3: 1, 5: 1}
    if not url:
        assert {path.name for path in tmp_path.glob("row-*") if (path / "made.txt").exists()} == names(range(1, 6))
    with opened(output, tmp_path, url) as results:
        assert drive([fake], results, range(1, 6)).done == 5 and sum(fake.runs.values()) == 2


def names(numbers: Iterable[int]) -> set[str]:
    return {f"row-{number}" for number in numbers}


class opened:
    """The results of a folder or of the URL of one."""

    def __init__(self, output: str, folder: Path, url: bool) -> None:
        self._ledger = None if url else Ledger(folder, ABOUT)
        self._output = output

    def __enter__(self) -> Results:
        return FolderResults(self._ledger.__enter__()) if self._ledger else ObjectResults(self._output, ABOUT)

    def __exit__(self, *reason: Any) -> None:
        if self._ledger:
            self._ledger.__exit__(None, None, None)


def test_two_drivers_on_one_url_commit_a_row_once(tmp_path: Path) -> None:
    first, second = (ObjectResults(tmp_path.as_uri(), ABOUT) for _ in range(2))
    fakes = [Fake(f"worker-{number}", ObjectPlace(tmp_path.as_uri()), {}) for number in (1, 2)]
    assert drive(fakes[:1], first, range(1, 6)).done == 5
    before = {path.name: path.read_text() for path in (tmp_path / "manifest").iterdir()}
    assert drive(fakes[1:], second, range(1, 6)).done == 5
    assert {path.name: path.read_text() for path in (tmp_path / "manifest").iterdir()} == before and len(before) == 5


def test_refused_row_is_not_tried_again(tmp_path: Path) -> None:
    with Ledger(tmp_path, ABOUT) as ledger:
        fake = Fake("worker-1", SharedFolder(tmp_path), {1: ["final"]})
        assert list(drive([fake], FolderResults(ledger), [1], Budget(9, 9)).reasons) == ["row-1"]
        assert fake.runs == {1: 1}


def test_workers_that_differ_or_cannot_start_are_left_out(tmp_path: Path) -> None:
    place = SharedFolder(tmp_path)
    other = {**SAME, "model a": "2"}
    with Ledger(tmp_path, ABOUT) as ledger:
        workers = [
            Fake("worker-1", place, {}, other),
            Fake("worker-2", place, {}),
            Fake("worker-3", place, {0: ["never"]}),
            Fake("worker-4", place, {}),
        ]
        summary = drive(workers, FolderResults(ledger), range(1, 9))
    assert summary.done == 8 and not workers[0].runs and not workers[2].runs
    assert summary.left_out.keys() == {"worker-1", "worker-3"}
    assert "model a is 2 there and 1 elsewhere" in summary.left_out["worker-1"]
    with Ledger(tmp_path / "none", ABOUT) as ledger, pytest.raises(ClusterError, match="No worker"):
        drive([workers[2]], FolderResults(ledger), [1])


def test_equally_frequent_opinions_are_decided_near_the_driver() -> None:
    found = {0: {"a": "1"}, 1: {"a": "2"}}
    assert agreed(found, {1}) == {"a": "2"} and agreed(found, set()) == {"a": "1"}
    assert agreed({**found, 2: {"a": "1"}}, {1}) == {"a": "1"}
    assert differences({"a": "1"}, {"a": "1", "b": "2"}) == ["b is missing there and 2 elsewhere"]


def test_lists_of_files_are_no_part_of_a_nodes_specification() -> None:
    old = {"required": {"name": [["a.ckpt", "b.ckpt"], {"tooltip": "t"}], "steps": ["INT", {"max": 9}]}}
    new = {"required": {"name": [["a.ckpt"], {"tooltip": "t"}], "steps": ["INT", {"max": 9}]}}
    combo = {"required": {"name": ["COMBO", {"options": ["a"], "tooltip": "t"}], "steps": ["INT", {"max": 9}]}}
    empty = {"required": {"name": [[], {"tooltip": "t"}], "steps": ["INT", {"max": 9}]}, "hidden": {"prompt": "PROMPT"}}
    assert without_files(old) == without_files(new) == without_files(empty)
    assert without_files(combo)["required"]["name"] == ["COMBO", {"tooltip": "t"}]
    assert without_files(old) != without_files({"required": {**old["required"], "steps": ["INT", {"max": 8}]}})


def test_digests_are_remembered_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack, store = tmp_path / "pack", tmp_path / "cache" / "digests.json"
    (pack / "__pycache__").mkdir(parents=True)
    (pack / "nodes.py").write_text("1")
    with FileDigests(store) as digests:
        first = tree_digest(pack, digests)
    (pack / "__pycache__" / "nodes.pyc").write_text("2")
    (pack / ".git").mkdir()
    with FileDigests(store) as digests, monkeypatch.context() as patched:
        patched.setattr("cluster.fingerprint.file_digest", lambda path: pytest.fail("it was read again"))
        assert tree_digest(pack, digests) == first
    (pack / "nodes.py").write_text("22")
    with FileDigests(store) as digests:
        assert tree_digest(pack, digests) != first


def test_table_of_100000_rows_is_checked_in_bounded_memory(tmp_path: Path) -> None:
    number = 100_000
    with open(tmp_path / "rows.csv", "w", encoding="utf-8") as file:
        file.write("1.seed,1.text\n")
        file.writelines(f"{each},a picture of number {each} among many others\n" for each in range(number))
    inputs = {"seed": ["INT", {}], "text": ["STRING", {}]}
    info = {"Stub": {"input": {"required": inputs}, "input_order": {"required": list(inputs)}}}
    prompt = {"1": {"class_type": "Stub", "inputs": {"seed": 0, "text": ""}}}
    plan = Plan(Workflow(prompt, info), {}, tmp_path)
    names: set[str] = set()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    before = peak()
    assert plan.check(_noted(read_table(tmp_path / "rows.csv"), names), Faults()) == number
    assert peak() - before < 8 << 20 and not names


def peak() -> int:
    """The most memory that this process held, in bytes."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) << 10
