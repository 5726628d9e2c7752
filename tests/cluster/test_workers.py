"""Which workers take part, what they are given, and where results go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from batch.files import digest
from ray_runs import Base, Nodes, Run, wait_until

pytestmark = pytest.mark.e2e


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
    assert list((store / "logs").iterdir())
    # Again: everything is known there, the failed row too.
    run.finish(run.start(nodes, "--output", store.as_uri(), "--retries", "0"), status=1)
    assert sum(run.starts().values()) == 7
    wait_until(lambda: not run.hosts())
