"""The batch command on a cluster of this machine, with real hosts: each row once, the pictures those of one host."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from ray_runs import COMMAND, HOST_SECONDS, wait_until

from demo_host import demo_host, load_workflow, set_inputs
from host import host_dir

pytestmark = pytest.mark.e2e
ROWS = 12


def pictures(results: Path) -> dict[str, np.ndarray]:
    """Row's folder -> its picture."""
    found = {}
    for path in sorted(results.glob("*/*.png")):
        assert path.parent.name not in found
        with Image.open(path) as picture:
            found[path.parent.name] = np.asarray(picture.convert("RGB"))
    return found


class Batch:
    """RefDrop over a table of seeds, on the demo's host."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.results = folder, folder / "cluster"
        host = demo_host(folder / "base")
        host.link_packs()
        workflow = set_inputs(load_workflow("refdrop"), "EmptyLatentImage", width=128, height=96)
        workflow = set_inputs(workflow, "ImageScaleToTotalPixels", megapixels=0.01)
        workflow = set_inputs(workflow, "KSampler", steps=2)
        (folder / "workflow.json").write_text(json.dumps(workflow))
        lines = [json.dumps({"KSampler.seed": number}) for number in range(ROWS)]
        (folder / "rows.jsonl").write_text("\n".join(lines))
        self._hosts = f"--host-args=--cpu --disable-api-nodes --base-directory {host.base}"

    def start(self, results: Path, *more: str) -> subprocess.Popen[bytes]:
        command = [*COMMAND, str(self.folder / "workflow.json"), "--table", str(self.folder / "rows.jsonl")]
        command += ["--output", str(results), "--start", str(host_dir()), self._hosts, *more]
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=self.environment())

    def on_cluster(self, workers: int) -> subprocess.Popen[bytes]:
        return self.start(self.results, "--ray", "local", "--gpus-per-worker", "0", "--workers", str(workers))

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        assert process.wait(timeout=600) == 0, (self.folder / "log").read_text()[-4000:]

    def environment(self) -> dict[str, str]:
        cache = {"XDG_CACHE_HOME": str(self.folder / "cache")}
        return {**os.environ, **cache, "RAY_memory_monitor_refresh_ms": "0", "OMP_NUM_THREADS": "1"}

    def hosts(self) -> list[psutil.Process]:
        """Those that run for this batch's workers."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if str(self.folder / "base") in line and any(each.endswith("main.py") for each in line[:2]):
                found.append(process)
        return found

    def done(self) -> int:
        file = self.results / "manifest.jsonl"
        return file.read_text().count('"state": "done"') if file.exists() else 0


@pytest.fixture
def batch(tmp_path: Path) -> Iterator[Batch]:
    batch = Batch(tmp_path)
    yield batch
    for process in batch.hosts():
        process.kill()


def kill_with_hosts(process: psutil.Process, hosts: list[psutil.Process]) -> None:
    process.kill()
    _, left = psutil.wait_procs(hosts, timeout=HOST_SECONDS)
    assert not left


def test_rows_survive_and_pictures_are_those_of_one_host(batch: Batch, tmp_path: Path) -> None:
    process = batch.on_cluster(workers=2)
    wait_until(lambda: batch.done() >= 2, 400)
    batch.hosts()[0].kill()
    wait_until(lambda: batch.done() >= 5, 400)
    host = wait_until(batch.hosts)[0]
    kill_with_hosts(host.parent().parent(), [host])  # its worker, behind the guard
    wait_until(lambda: batch.done() >= 7, 400)
    kill_with_hosts(psutil.Process(process.pid), batch.hosts())
    process.wait()
    batch.finish(batch.on_cluster(workers=1))
    records = [json.loads(line) for line in (batch.results / "manifest.jsonl").read_text().splitlines()[1:]]
    done: Counter[Any] = Counter(each["row"] for each in records if each["state"] == "done")
    assert done == Counter(range(1, ROWS + 1))
    assert not batch.hosts()

    batch.finish(batch.start(tmp_path / "alone"))
    alone, together = pictures(tmp_path / "alone"), pictures(batch.results)
    assert alone.keys() == together.keys() and len(alone) == ROWS
    assert all(np.array_equal(alone[name], together[name]) for name in alone)
    assert len({picture.tobytes() for picture in alone.values()}) == ROWS
