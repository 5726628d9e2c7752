"""Measures all claims and writes the table: `python -m claims [FOLDER OF THE COMPACT WEIGHTS] [--count N]`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from refattention_demo.world import models
from world import classifier, measure
from world.config import HELD_OUT
from world.pictures import to_batch
from world_host import WorldHost, inputs, node_id, small

from demo_host import load_workflow
from host import ROOT

from . import deadiff, leffa, p3s, point_mask, refdrop, refine, report

PAPERS = refdrop, point_mask, p3s, deadiff, leffa, refine
KEPT = ("species", "scene", "style", "shirt", "body", "pattern", "logo", "pose")


def main() -> None:
    """Runs everything on one host."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", nargs="?", type=Path, default=models.FOLDER)
    parser.add_argument("--count", type=int, default=32, help="cases for each row")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    chosen = parser.parse_args()
    started = time.monotonic()
    with WorldHost(chosen.weights) as host:
        base = obedience(host, report.PROMPTS)
        found = [paper.run(host, chosen.count) for paper in PAPERS]
    path = report.write(chosen.out, found, base)
    results = {"base": base, "findings": [findings.as_json() for findings in found]}
    (path.parent / "claims" / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(f"{path} after {time.monotonic() - started:.0f} s")


def obedience(host: WorldHost, count: int) -> dict[str, float]:
    """How often pictures show what their prompts say, by the host's own sampler."""
    asked, pictures = measure.prompts(count), []
    for number, (prompt, _) in enumerate(asked):
        graph = small(load_workflow("deadiff"), prompt, HELD_OUT + number)
        inputs(graph, "KSampler")["model"] = inputs(graph, "DEADiffStyle")["model"]
        for unused in ("DEADiffStyle", "DEADiffLoader", "LoadImage"):
            del graph[node_id(graph, unused)]
        pictures.append(host.pictures(graph, node_id(graph, "SaveImage"))[0])
    right = measure.accuracy(classifier.trained(), to_batch(np.stack(pictures)), [truth for _, truth in asked])
    return {name: right[name] for name in KEPT}


if __name__ == "__main__":
    main()
