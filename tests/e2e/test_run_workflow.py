"""The batch command on a real server: rows, uploads, failures, and both sides killed in the middle."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from demo_host import PHOTO, demo_host, load_workflow, set_inputs
from host import ROOT, HeadlessHost, host_dir

pytestmark = pytest.mark.e2e
COMMAND = [sys.executable, str(ROOT / "tools" / "run_workflow.py")]
Workflow = dict[str, Any]


def slow(steps: int) -> Workflow:
    """Sampling that can be killed in the middle."""
    workflow = set_inputs(load_workflow("refdrop"), "EmptyLatentImage", width=256, height=192)
    workflow = set_inputs(workflow, "ImageScaleToTotalPixels", megapixels=0.04)
    return set_inputs(workflow, "KSampler", steps=steps)


QUICK: Workflow = {
    "1": {"class_type": "LoadImage", "inputs": {"image": PHOTO.name}},
    "2": {
        "class_type": "ImageScale",
        "inputs": {"image": ["1", 0], "upscale_method": "area", "width": 32, "height": 24, "crop": "disabled"},
    },
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "quick"}},
}


class Folder:
    """A workflow, its table and its results."""

    def __init__(self, path: Path, workflow: Workflow, rows: list[dict[str, Any]]) -> None:
        self.path, self.results = path, path / "results"
        (path / "workflow.json").write_text(json.dumps(workflow), encoding="utf-8")
        with open(path / "rows.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, sorted({column for row in rows for column in row}))
            writer.writeheader()
            writer.writerows(rows)

    def command(self, *more: str) -> list[str]:
        files = [str(self.path / "workflow.json"), "--table", str(self.path / "rows.csv")]
        return [*COMMAND, *files, "--output", str(self.results), *more]

    def run(self, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*more), capture_output=True, text=True, timeout=300, check=False)

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(*more),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # A shell that runs the tests in the background has made them, and what they start, deaf to Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def records(self) -> list[dict[str, Any]]:
        """The manifest's lines about rows."""
        file = self.results / "manifest.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [json.loads(line) for line in lines[1:]]

    def pictures(self) -> list[str]:
        return sorted(str(path.relative_to(self.results)) for path in self.results.glob("*/*.png"))

    def wait_for(self, rows: int) -> None:
        limit = time.monotonic() + 120
        while len(self.records()) < rows:
            assert time.monotonic() < limit
            time.sleep(0.1)


def executed(host: HeadlessHost) -> int:
    return len(host.get("/history"))


def test_rows_uploads_and_manifest(host: HeadlessHost, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), (255, 0, 0)).save(tmp_path / "red.png")
    rows = [{"name": "red", "LoadImage.image": "red.png"}, {"ImageScale.width": "48"}, {"ImageScale.height": "-1"}]
    folder = Folder(tmp_path, QUICK, rows)
    checked = folder.run("--host", host.url)
    assert checked.returncode == 2 and "Row 3 (0003): Column 'ImageScale.height': -1 is less than 0." in checked.stderr
    result = folder.run("--host", host.url, "--unchecked")
    assert result.returncode == 1
    assert "2 of 3 rows are done" in result.stdout
    red, wide, refused = folder.records()
    assert [each["state"] for each in (red, wide, refused)] == ["done", "done", "failed"]
    assert "node 2 (ImageScale)" in refused["error"] and "height" in refused["error"]
    with Image.open(folder.results / "red" / next(iter(red["files"]))) as picture:
        assert picture.getpixel((5, 5)) == (255, 0, 0)
    with Image.open(folder.results / "0002" / next(iter(wide["files"]))) as picture:
        assert picture.size == (48, 24)
    assert red["versions"]["comfyui"] and red["input_sha256"].keys() == {"LoadImage.image"}


def what_it_needs(workflow: Workflow, class_type: str) -> Workflow:
    """The nodes of one class and all that feeds them."""
    kept: Workflow = {}
    waiting = [name for name, node in workflow.items() if node["class_type"] == class_type]
    while waiting:
        name = waiting.pop()
        kept[name] = workflow[name]
        waiting += [value[0] for value in workflow[name]["inputs"].values() if isinstance(value, list)]
    return kept


def test_all_that_a_run_wrote_is_in_the_manifest(host: HeadlessHost, tmp_path: Path) -> None:
    """A training that only saves an adapter among the models, and a probe whose pictures are for its own panel."""
    training = set_inputs(load_workflow("p3s_train"), "ImageScaleToTotalPixels", megapixels=0.01)
    training = set_inputs(training, "P3STrain", epochs=1, preview_every=0, mixed_precision=False)
    probe = set_inputs(load_workflow("attention_probe"), "AttentionProbe", working_size=128)
    records = {}
    for name, workflow, column in (
        ("train", what_it_needs(training, "P3SSave"), "P3STrain.seed"),
        ("probe", what_it_needs(probe, "AttentionProbe"), "AttentionProbe.seed"),
    ):
        (tmp_path / name).mkdir()
        folder = Folder(tmp_path / name, workflow, [{"name": "row", column: "3"}])
        result = folder.run("--host", host.url)
        assert result.returncode == 0, result.stderr
        (records[name],) = folder.records()
    (saved,) = records["train"]["left_on_host"]
    assert (host.base / "models" / saved).is_file()
    assert len(records["probe"]["files"]) >= 3 and "left_on_host" not in records["probe"]
    assert not any("named_no_files" in record for record in records.values())


def test_previews_are_kept_where_nothing_is_saved(host: HeadlessHost, tmp_path: Path) -> None:
    preview = {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}
    for name, workflow in (("only", {**QUICK, "3": preview}), ("beside", {**QUICK, "4": preview})):
        (tmp_path / name).mkdir()
        folder = Folder(tmp_path / name, workflow, [{"name": "row"}])
        assert folder.run("--host", host.url).returncode == 0
        (picture,) = folder.pictures()
        assert Path(picture).name.startswith("quick") == (name == "beside")


def test_mistakes_in_the_table_run_nothing(host: HeadlessHost, tmp_path: Path) -> None:
    before = executed(host)
    folder = Folder(tmp_path, QUICK, [{"ImageScale.width": "48"}, {"ImageScale.width": "wide"}])
    result = folder.run("--host", host.url)
    assert result.returncode == 2 and "'wide' is not a whole number" in result.stderr
    assert executed(host) == before


def test_no_host_is_one_sentence(tmp_path: Path) -> None:
    result = Folder(tmp_path, QUICK, [{"ImageScale.width": "48"}]).run("--host", "127.0.0.1:9", "--wait", "0")
    assert result.returncode == 2
    assert result.stderr.strip().startswith("No ComfyUI answers at http://127.0.0.1:9")


def test_killed_runner_goes_on_without_repeating_a_row(host: HeadlessHost, tmp_path: Path) -> None:
    before = executed(host)
    folder = Folder(tmp_path, slow(6), [{"KSampler.seed": str(seed)} for seed in range(3)])
    runner = folder.start("--host", host.url)
    folder.wait_for(rows=1)
    time.sleep(0.7)  # into the second row
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    assert len(folder.records()) == 1
    result = folder.run("--host", host.url)
    assert result.returncode == 0, result.stderr
    assert [record["row"] for record in folder.records()] == [1, 2, 3]
    assert len(folder.pictures()) == 3
    assert executed(host) == before + 3
    assert folder.run("--host", host.url).returncode == 0
    assert executed(host) == before + 3


def test_ctrl_c_takes_the_row_from_the_host(host: HeadlessHost, tmp_path: Path) -> None:
    folder = Folder(tmp_path, slow(200), [{"KSampler.seed": "1"}])
    runner = folder.start("--host", host.url)
    limit = time.monotonic() + 60
    while not host.get("/queue")["queue_running"]:
        assert time.monotonic() < limit
        time.sleep(0.1)
    runner.send_signal(signal.SIGINT)
    assert runner.wait(timeout=60) == 130
    while host.get("/queue")["queue_running"]:
        assert time.monotonic() < limit
        time.sleep(0.1)
    assert not folder.records() and not folder.pictures()


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """The demo's base directory without a host that runs."""
    host = demo_host(tmp_path / "base")
    host.link_packs()
    yield host.base


def test_own_host_is_killed_and_started_again(base: Path, tmp_path: Path) -> None:
    """And taken over from a runner that was killed, and gone at the end."""
    folder = Folder(tmp_path, slow(6), [{"KSampler.seed": str(seed)} for seed in range(3)])
    arguments = f"--cpu --disable-api-nodes --base-directory {base} --database-url sqlite:///:memory:"
    options = ("--start", str(host_dir()), f"--host-args={arguments}")
    runner = folder.start(*options)
    folder.wait_for(rows=1)
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    note = json.loads((folder.results / ".host.json").read_text())
    assert (folder.results / "host.log").is_file()
    second = folder.start(*options)
    folder.wait_for(rows=2)
    os.kill(note["pid"], signal.SIGKILL)
    assert second.wait(timeout=240) == 0
    assert [record["row"] for record in folder.records()] == [1, 2, 3]
    assert len(folder.pictures()) == 3 and not list(folder.results.rglob("*.part"))
    assert not (folder.results / ".host.json").exists()
