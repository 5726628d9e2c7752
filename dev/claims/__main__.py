"""Measures the claims and writes the table: `python -m claims [FOLDER OF THE COMPACT WEIGHTS] [--only GROUP ...]`."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from refattention_demo.world import models
from world import classifier, measure
from world.config import HELD_OUT
from world.pictures import to_batch
from world_host import WorldHost, inputs, node_id, small

from demo_host import load_workflow
from host import ROOT

from . import (
    deadiff,
    deadiff_control,
    leffa,
    leffa_poses,
    leffa_quilts,
    p3s,
    p3s_ablations,
    p3s_trained,
    point_mask,
    refdrop,
    refdrop_further,
    refine,
    refine_trained,
    report,
)
from .reading import NotHereError, drawn
from .remembering import Painted, RememberingHost
from .rows import Findings

BASE = "base"
# In the table's order
GROUPS = {
    "refdrop": refdrop.run,
    "blending": refdrop_further.run_blending,
    "rank_one": refdrop_further.run_rank_one,
    "layout": refdrop_further.run_layout,
    "point_mask": point_mask.run,
    "touching": point_mask.run_touching,
    "p3s": p3s.run,
    "p3s_trained": p3s_trained.run,
    "p3s_ablations": p3s_ablations.run,
    "deadiff": deadiff.run,
    "deadiff_control": deadiff_control.run,
    "leffa": leffa.run,
    "leffa_quilts": leffa_quilts.run,
    "leffa_choices": leffa_quilts.run_choices,
    "leffa_poses": leffa_poses.run,
    "refine": refine.run,
    "refine_trained": refine_trained.run,
}
# What a host does in one go, the longest first: groups that need the same pictures paint them once.
JOBS = (
    ("p3s_ablations",),
    ("refdrop", "blending", "rank_one", "layout"),
    ("p3s_trained",),
    ("refine", "refine_trained"),
    ("deadiff", "deadiff_control"),
    ("leffa_quilts", "leffa_choices"),
    ("p3s",),
    ("leffa",),
    ("leffa_poses",),
    (BASE,),
    ("point_mask", "touching"),
)
# Thirty-two trainings: only when it is asked for
LONG = ("p3s_ablations",)
# A node that computes attention as a claim says it
PACKS = {"RefAttention-Claims": Path(__file__).with_name("rank_one")}
# A small model keeps one core busy, so that two hosts are done in half the time.
HOSTS = 2
KEPT = ("species", "scene", "style", "shirt", "body", "pattern", "logo", "pose")


def main() -> None:
    """Runs the chosen groups; the table keeps what it has of the others."""
    parser = argparse.ArgumentParser(prog="python -m claims", description=__doc__)
    parser.add_argument("weights", nargs="?", type=Path, default=models.FOLDER, help="of the world's models")
    parser.add_argument(
        "--only",
        nargs="*",
        choices=(BASE, *GROUPS),
        default=[name for name in (BASE, *GROUPS) if name not in LONG],
        metavar="GROUP",
        help=f"groups to measure: {BASE}, {', '.join(GROUPS)}; the table keeps the others. None: only write the table. "
        f"Without --only: all but {', '.join(LONG)}",
    )
    parser.add_argument("--count", type=int, default=32, help="cases for each row: %(default)s")
    parser.add_argument("--hosts", type=int, default=HOSTS, help="ComfyUI processes at a time, of one thread each")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="gets CLAIMS.md and claims/: %(default)s")
    chosen = parser.parse_args()
    started = time.monotonic()
    lock = threading.Lock()

    def measured(host: WorldHost, name: str) -> None:
        begun, used = time.monotonic(), _used(host)
        try:
            found = obedience(host, report.PROMPTS) if name == BASE else GROUPS[name](host, chosen.count)
        except NotHereError as error:
            print(f"{name}: its rows stay as they are; it {error}", flush=True)
            return
        with lock:
            results = report.read(chosen.out)
            if isinstance(found, Findings):
                results.groups[name] = found
            else:
                results.base, results.reader = found
            report.write(chosen.out, results, [*GROUPS])
        print(f"{name}: {time.monotonic() - begun:.0f} s, {_used(host) - used:.0f} s of a core", flush=True)

    jobs = [job for job in ([name for name in each if name in chosen.only] for each in JOBS) if job]
    _share(iter(jobs), min(chosen.hosts, len(jobs)), chosen.weights, measured)
    print(f"{report.write(chosen.out, report.read(chosen.out), [*GROUPS])} after {time.monotonic() - started:.0f} s")


def _used(host: WorldHost) -> float:
    """Seconds of a core that a host and the thread that asks it have used."""
    return host.cpu_seconds() + time.thread_time()


def _share(jobs: Iterator[list[str]], hosts: int, weights: Path, work: Callable[[WorldHost, str], None]) -> None:
    """Has some hosts work off jobs of several names each."""
    painted: Painted = {}

    def worker() -> None:
        with RememberingHost(weights, PACKS, painted) as host:
            for job in jobs:
                for name in job:
                    work(host, name)

    with ThreadPoolExecutor(max(hosts, 1)) as pool:
        for done in [pool.submit(worker) for _ in range(hosts)]:
            done.result()


def obedience(host: WorldHost, count: int) -> tuple[dict[str, float], dict[str, float]]:
    """How often pictures show what their prompts say, by the host's own sampler, and drawings what they are of."""
    asked, pictures = measure.prompts(count), []
    for number, (prompt, _) in enumerate(asked):
        graph = small(load_workflow("deadiff"), prompt, HELD_OUT + number)
        inputs(graph, "KSampler")["model"] = inputs(graph, "DEADiffStyle")["model"]
        for unused in ("DEADiffStyle", "DEADiffLoader", "LoadImage"):
            del graph[node_id(graph, unused)]
        pictures.append(host.saved(graph)[0])
    shown, model = [truth for _, truth in asked], classifier.trained()
    right = [drawn(each) for each in shown]
    painted, read = (measure.accuracy(model, to_batch(np.stack(each)), shown) for each in (pictures, right))
    return {name: painted[name] for name in KEPT}, {name: read[name] for name in KEPT}


if __name__ == "__main__":
    main()
