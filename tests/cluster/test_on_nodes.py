"""On two nodes, whatever is killed: no row is lost, none is committed twice, and no host outlives its worker.

All that needs these nodes is in this file, so that one process of a parallel test run starts them, once.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from batch.files import digest
from batch.jobs import Plan
from batch.overrides import Workflow
from batch.table import read_table
from PIL import Image
from ray_runs import STUB_WORKFLOW, Base, Nodes, Run, alive, kill, parent_of, wait_until

from demo_host import demo_host, load_workflow, set_inputs
from host import host_dir

pytestmark = pytest.mark.e2e


def running(run: Run, without: set[int]) -> dict[str, Any] | None:
    """A row that runs now on a host that is alive, as the journal has it."""
    done = {record["inputs"]["1.seed"] for record in run.done()}
    for entry in run.entries("row"):
        if entry["mode"] == "ok" and entry["row"] not in done | without and alive(entry["pid"]):
            return entry
    return None


def test_hosts_and_workers_are_killed_and_rows_are_poison(nodes: Nodes, tmp_path: Path) -> None:
    """Three hosts and three workers die under good rows; one row fails, one kills its host, one hangs."""
    poison = [{"seed": 100 + number, "mode": mode} for number, mode in enumerate(("err", "die", "hang"))]
    run = Run(tmp_path, [*poison, *({"seed": number, "seconds": 1.5} for number in range(9))])
    process = run.start(nodes, "--retries", "1", "--losses", "1", "--row-timeout", "3")
    hit: set[int] = set()
    for what in ("host", "worker") * 3:
        entry = wait_until(lambda: running(run, hit))
        hit.add(entry["row"])
        if what == "host":
            kill(entry["pid"], [entry["guard"]])
        else:
            kill(parent_of(entry["guard"]), [entry["guard"], entry["pid"]])
    text = run.finish(process, status=1)
    run.check(done=9)
    starts = run.starts()
    assert starts[100] == starts[101] == starts[102] == 2  # one more than --retries, --losses
    # A host may have died a moment after its row was done.
    assert all(starts[number] in ((1, 2) if number in hit else (1,)) for number in range(9))
    last = {record["inputs"]["1.seed"]: record for record in run.records()}
    assert [(last[seed]["failures"], last[seed]["losses"]) for seed in (100, 101, 102)] == [(2, 0), (0, 2), (0, 2)]
    assert "told to fail" in text and "Its ComfyUI died" in text and "longer than 3 s" in text
    assert f"9 of 12 rows are done, after {sum(starts.values())} starts" in text
    assert {path.name for path in (run.results / "logs").iterdir()} == {"worker-1.log", "worker-2.log"}


def test_driver_is_frozen_and_killed_and_a_node_goes_away(nodes: Nodes, bases: list[Base], tmp_path: Path) -> None:
    """What workers finish while the driver is frozen is found, not run again."""
    run = Run(tmp_path, [{"seed": number, "seconds": 1.0} for number in range(13)])
    process = run.start(nodes)
    wait_until(lambda: len(run.entries("row")) >= 4)
    process.send_signal(signal.SIGSTOP)
    frozen, partial = run.starts(), run.results / ".partial"
    wait_until(lambda: len(run.done()) + len(list(partial.glob("*~*/.record.json"))) >= len(frozen))
    kill(process.pid, [entry["pid"] for entry in run.hosts()])
    process.wait()
    for done in (6, 8):
        process = run.start(nodes)
        wait_until(lambda done=done: len(run.done()) >= done)
        kill(process.pid, [entry["pid"] for entry in run.hosts()])
        process.wait()
    process = run.start(nodes)
    wait_until(lambda: len(run.done()) >= 10)
    nodes.tell("remove 1")
    run.finish(process)
    nodes.tell(f"add {json.dumps({'STUB_BASE': str(bases[1].folder)})}")
    run.check(done=13)
    starts = run.starts()
    assert all(starts[number] == 1 for number in frozen)
    assert sum(starts.values()) <= 13 + 3 * 2  # two rows were in flight at each of the other faults, at most


def test_ctrl_c_ends_the_hosts_and_says_how_to_go_on(nodes: Nodes, tmp_path: Path) -> None:
    run = Run(tmp_path, [{"seed": number, "seconds": 60.0} for number in range(4)])
    process = run.start(nodes)
    wait_until(lambda: len(run.entries("row")) >= 2)
    os.kill(process.pid, signal.SIGINT)
    run.finish(process, status=130)
    wait_until(lambda: not run.hosts(), seconds=5)
    assert "The same command goes on from here." in run.errors()
    assert not run.records()


def test_node_that_differs_is_left_out_and_named(nodes: Nodes, bases: list[Base], tmp_path: Path) -> None:
    changed = [bases[1].pack, bases[1].model]
    was = [path.read_text() for path in changed]
    for path in changed:
        path.write_text("another")
    try:
        run = Run(tmp_path, [{"seed": number} for number in range(4)])
        run.finish(run.start(nodes))
    finally:
        for path, text in zip(changed, was, strict=True):
            path.write_text(text)
    run.check(done=4)
    (line,) = (line for line in run.errors().splitlines() if "is left out" in line)
    assert line.startswith("worker-")
    assert "pack stub_pack is " in line and "model checkpoints/model.ckpt is " in line and "ComfyUI is" not in line
    assert len({entry["pid"] for entry in run.entries("row")}) == 1


def test_inputs_go_by_content_to_a_url(nodes: Nodes, bases: list[Base], tmp_path: Path) -> None:
    """Two files of one name; a third has taken the name of one of them on the hosts. Results go to a file: URL."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "picture.png").write_text(f"picture {name}")
    sent = f"{digest(tmp_path / 'a' / 'picture.png')}-picture.png"
    for base in bases:
        (base.folder / "input").mkdir(exist_ok=True)
        (base.folder / "input" / sent).write_text("something else")
    rows = [{"seed": number, "image": f"{'ab'[number % 2]}/picture.png"} for number in range(6)]
    run = Run(tmp_path, [*rows, {"seed": 6, "mode": "err"}])
    store = tmp_path / "store"
    process = run.start(nodes, "--output", store.as_uri(), "--retries", "0")
    text = run.finish(process, status=1)
    assert "6 of 7 rows are done" in text and "told to fail" in text
    entries = [json.loads(path.read_text()) for path in (store / "manifest").iterdir()]
    assert len(entries) == 6
    for entry in entries:
        (name,) = entry["files"]
        made = json.loads((store / entry["folder"] / name).read_text())
        assert made["image"] == f"picture {'ab'[made['seed'] % 2]}"
    uploads = [(entry["pid"], entry["upload"]) for entry in run.entries("upload")]
    assert len(uploads) == len(set(uploads)) <= 4
    # What a host calls a file does not show in a row's key.
    assert f"again-{sent}" in {name for _, name in uploads}
    image = {"image": [[], {"image_upload": True}]}
    inputs = {"seed": ["INT", {}], "mode": ["STRING", {}], **image}
    info = {"Stub": {"input": {"required": inputs}, "input_order": {"required": list(inputs)}}}
    jobs = Plan(Workflow(STUB_WORKFLOW, info), {}, tmp_path).jobs(read_table(tmp_path / "rows.jsonl"))
    assert {entry["key"] for entry in entries} < {job.key for job in jobs}
    assert list((store / "logs").iterdir())
    wait_until(lambda: not run.hosts())


def pictures(results: Path) -> dict[str, np.ndarray]:
    """Row's folder -> its picture."""
    found = {}
    for path in sorted(results.glob("*/*.png")):
        with Image.open(path) as picture:
            found[path.parent.name] = np.asarray(picture.convert("RGB"))
    return found


def test_real_hosts_survive_and_make_the_pictures_of_one_host(nodes: Nodes, tmp_path: Path) -> None:
    """RefDrop with the demo's models: a host, a worker and the driver are killed."""
    demo = demo_host(tmp_path / "base")
    demo.link_packs()
    workflow = set_inputs(load_workflow("refdrop"), "EmptyLatentImage", width=128, height=96)
    workflow = set_inputs(workflow, "ImageScaleToTotalPixels", megapixels=0.01)
    workflow = set_inputs(workflow, "KSampler", steps=1)
    rows = [{"seed": number} for number in range(8)]
    host_args = f"--cpu --disable-api-nodes --base-directory {demo.base}"
    run = Run(tmp_path, rows, workflow, "KSampler", host_dir(), host_args)

    def hosts() -> list[psutil.Process]:
        processes = psutil.process_iter(["cmdline"])
        mine = [each for each in processes if str(demo.base) in (each.info["cmdline"] or [])]
        return [each for each in mine if each.info["cmdline"][1].endswith("main.py")]

    process = run.start(nodes)
    try:
        wait_until(lambda: len(run.done()) >= 1)
        hosts()[0].kill()
        wait_until(lambda: len(run.done()) >= 2)
        host = wait_until(hosts)[0]
        kill(host.parent().ppid(), [host.pid])  # its worker, behind its guard
        before = len(run.done())
        wait_until(lambda: len(run.done()) > before)  # by a host that was started again
        kill(process.pid, [each.pid for each in hosts()])
        process.wait()
        run.finish(run.start(nodes, "--workers", "1"))
        assert not hosts()
    finally:
        for each in (process, *hosts()):
            each.kill()
    run.check_folders(done=8)

    run.finish(run.launch(nodes.environment, "--output", str(tmp_path / "alone")))
    alone, together = pictures(tmp_path / "alone"), pictures(run.results)
    assert alone.keys() == together.keys() and len(alone) == 8
    assert all(np.array_equal(alone[name], together[name]) for name in alone)
    assert len({picture.tobytes() for picture in alone.values()}) == 8
